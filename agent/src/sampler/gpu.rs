//! GPUs, read through NVIDIA's library on a thread of its own: a call into it can hang for as long as
//! a GPU that fell off the bus pleases, and nothing else may wait for that.
//!
//! What the hardware cannot tell is absent with its reason. Utilisation is the share of time in which
//! any kernel ran; only the profiling figures (GPM, from Hopper on) say how busy the units were.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::{Device, Nvml};
use shared::report::{Gpu, GpuSample};
use tokio::sync::mpsc;

/// Where the dynamic linker finds the library, if it is there.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// A driver may come later; looking for it each second would be noise.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// One reading of all GPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuReading {
    pub gpus: Vec<Gpu>,
    pub samples: Vec<GpuSample>,
    /// Why there are none, when there are none.
    pub none_because: Option<String>,
    /// (name, reason) of figures that could not be had.
    pub absent: Vec<(String, String)>,
}

/// The handle to the thread.
pub struct GpuProbe {
    questions: std_mpsc::SyncSender<()>,
    answers: mpsc::Receiver<GpuReading>,
    asked_at: Option<Instant>,
    last: GpuReading,
}

impl GpuProbe {
    /// Starts the thread; it ends when the handle is dropped, or never, if the library hangs.
    pub fn start(library: Option<PathBuf>) -> std::io::Result<Self> {
        // One question at a time.
        let (questions, asked) = std_mpsc::sync_channel(1);
        let (answer, answers) = mpsc::channel(1);
        let library = library.map_or_else(|| LIBRARY.into(), PathBuf::into_os_string);
        std::thread::Builder::new()
            .name("nvml".into())
            .spawn(move || serve(&library, &asked, &answer))?;
        Ok(Self {
            questions,
            answers,
            asked_at: None,
            last: GpuReading::default(),
        })
    }

    /// The current reading, or the last known GPUs without figures if none comes within `limit`.
    pub async fn read(&mut self, limit: Duration) -> GpuReading {
        let asked_at = match self.asked_at {
            Some(asked_at) => asked_at,
            None => {
                // The queue is empty whenever no answer is awaited; a thread that is gone is reported
                // below as one that does not answer.
                let _ = self.questions.try_send(());
                let now = Instant::now();
                self.asked_at = Some(now);
                now
            }
        };
        match tokio::time::timeout(limit, self.answers.recv()).await {
            Ok(Some(reading)) => {
                self.asked_at = None;
                self.last = GpuReading {
                    samples: Vec::new(),
                    ..reading.clone()
                };
                reading
            }
            Ok(None) => self.silent("NVML's thread has ended".into()),
            Err(_) => {
                let silent_for = asked_at.elapsed().as_secs_f64();
                self.silent(format!("NVML has not answered for {silent_for:.1} s"))
            }
        }
    }

    fn silent(&self, reason: String) -> GpuReading {
        let gpus = self.last.gpus.clone();
        GpuReading {
            none_because: gpus.is_empty().then(|| reason.clone()),
            gpus,
            samples: Vec::new(),
            absent: vec![("gpus".into(), reason)],
        }
    }
}

fn serve(library: &OsString, asked: &std_mpsc::Receiver<()>, answer: &mpsc::Sender<GpuReading>) {
    let mut library = Library::new(library.clone());
    while asked.recv().is_ok() {
        if answer.blocking_send(library.read()).is_err() {
            return;
        }
    }
}

struct Library {
    path: OsString,
    state: State,
    /// The last profiling sample of each GPU: figures are differences of two.
    profiles: HashMap<String, GpmSample<'static>>,
}

enum State {
    Absent {
        reason: String,
        looked_at: Instant,
    },
    /// Kept for the thread's life: profiling samples borrow from it.
    Loaded(&'static Nvml),
    NotTried,
}

impl Library {
    fn new(path: OsString) -> Self {
        Self {
            path,
            state: State::NotTried,
            profiles: HashMap::new(),
        }
    }

    fn read(&mut self) -> GpuReading {
        match self.nvml() {
            Ok(nvml) => self.read_all(nvml),
            Err(reason) => GpuReading {
                none_because: Some(reason),
                ..GpuReading::default()
            },
        }
    }

    fn nvml(&mut self) -> Result<&'static Nvml, String> {
        match &self.state {
            State::Loaded(nvml) => return Ok(nvml),
            State::Absent { reason, looked_at } if looked_at.elapsed() < LOOK_AGAIN => {
                return Err(reason.clone());
            }
            State::Absent { .. } | State::NotTried => {}
        }
        match Nvml::builder().lib_path(&self.path).init() {
            Ok(nvml) => {
                let nvml: &'static Nvml = Box::leak(Box::new(nvml));
                self.state = State::Loaded(nvml);
                Ok(nvml)
            }
            Err(error) => {
                let reason = format!("no NVIDIA driver: {error}");
                self.state = State::Absent {
                    reason: reason.clone(),
                    looked_at: Instant::now(),
                };
                Err(reason)
            }
        }
    }

    fn read_all(&mut self, nvml: &'static Nvml) -> GpuReading {
        let mut reading = GpuReading::default();
        let count = match nvml.device_count() {
            Ok(count) => count,
            Err(error) => {
                reading.none_because = Some(format!("NVML cannot count GPUs: {error}"));
                return reading;
            }
        };
        for index in 0..count {
            // One GPU that is lost must not hide the others.
            if let Err(error) = self.read_one(nvml, index, &mut reading) {
                let name = format!("gpu.{index}");
                reading.absent.push((name, error.to_string()));
            }
        }
        if reading.gpus.is_empty() {
            let reason = match reading.absent.first() {
                Some((name, reason)) => format!("{name}: {reason}"),
                None => "the driver knows no GPU".into(),
            };
            reading.none_because = Some(reason);
        }
        reading
    }

    fn read_one(
        &mut self,
        nvml: &'static Nvml,
        index: u32,
        reading: &mut GpuReading,
    ) -> Result<(), nvml_wrapper::error::NvmlError> {
        let device = nvml.device_by_index(index)?;
        let uuid = device.uuid()?;
        let memory = device.memory_info()?;
        reading.gpus.push(Gpu {
            uuid: uuid.clone(),
            name: device.name()?,
            memory_bytes: memory.total,
        });
        let absent = &mut reading.absent;
        let mut optional = |name: &str, error: String| {
            absent.push((format!("gpu.{index}.{name}"), error));
        };
        let mut sample = GpuSample {
            uuid: uuid.clone(),
            memory_used_bytes: Some(memory.used),
            busy: None,
            sm: None,
            tensor: None,
            fp16: None,
            dram_bandwidth: None,
            power_milliwatts: None,
            temperature_celsius: None,
        };
        match device.utilization_rates() {
            Ok(rates) => sample.busy = Some(f64::from(rates.gpu) / 100.0),
            Err(e) => optional("busy", e.to_string()),
        }
        match device.power_usage() {
            Ok(milliwatts) => sample.power_milliwatts = Some(milliwatts),
            Err(e) => optional("power_milliwatts", e.to_string()),
        }
        match device.temperature(TemperatureSensor::Gpu) {
            Ok(celsius) => sample.temperature_celsius = Some(celsius),
            Err(e) => optional("temperature_celsius", e.to_string()),
        }
        if let Err(reason) = self.profile(nvml, &device, &mut sample) {
            for name in ["sm", "tensor", "fp16", "dram_bandwidth"] {
                optional(name, reason.clone());
            }
        }
        reading.samples.push(sample);
        Ok(())
    }

    fn profile(
        &mut self,
        nvml: &'static Nvml,
        device: &Device<'static>,
        sample: &mut GpuSample,
    ) -> Result<(), String> {
        const WANTED: [GpmMetricId; 4] = [
            GpmMetricId::SmUtil,
            GpmMetricId::AnyTensorUtil,
            GpmMetricId::Fp16Util,
            GpmMetricId::DramBwUtil,
        ];
        match device.gpm_support() {
            Ok(true) => {}
            Ok(false) => return Err("this GPU has no profiling figures (Hopper and newer)".into()),
            Err(error) => return Err(error.to_string()),
        }
        let now = device.gpm_sample().map_err(|error| error.to_string())?;
        let Some(before) = self.profiles.remove(&sample.uuid) else {
            self.profiles.insert(sample.uuid.clone(), now);
            return Err("the first of two samples".into());
        };
        let figures = gpm_metrics_get(nvml, &before, &now, &WANTED);
        self.profiles.insert(sample.uuid.clone(), now);
        let figures = figures.map_err(|error| error.to_string())?;
        for figure in figures.into_iter().flatten() {
            let share = figure
                .value
                .is_finite()
                .then(|| (figure.value / 100.0).clamp(0.0, 1.0));
            match figure.metric_id {
                GpmMetricId::SmUtil => sample.sm = share,
                GpmMetricId::AnyTensorUtil => sample.tensor = share,
                GpmMetricId::Fp16Util => sample.fp16 = share,
                GpmMetricId::DramBwUtil => sample.dram_bandwidth = share,
                // Only what was asked for comes back.
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_without_the_library_has_no_gpus_and_says_why() {
        let mut probe =
            GpuProbe::start(Some("/nonexistent/libnvidia-ml.so".into())).expect("start");
        let reading = probe.read(Duration::from_secs(10)).await;
        assert!(reading.gpus.is_empty());
        let reason = reading.none_because.expect("a reason");
        assert!(reason.contains("no NVIDIA driver"), "{reason}");
    }
}
