//! Every trace with every plant and start-up time.

use std::time::Duration;

use apa::Policy;
use sim::compare::Contest;
use sim::engine::{Options, Scenario};
use sim::plant::Plant;
use sim::synth::Shape;
use sim::trace::{Kind, Trace};

pub(crate) const KNEES: [u32; 4] = [2, 6, 40, 200];
pub(crate) const STARTUPS_S: [u64; 3] = [1, 10, 60];
/// What a trace's peak takes, at the knee, of the replicas there could be: a service large enough to
/// scale in steps and small enough to be noisy.
const PEAK_REPLICAS: f64 = 20.0;
/// Of the traces made here the ramp alone is taken as it is: 10 to 10,000 requests a second.
const AS_IT_IS: &str = "ramp";
const MOST_REPLICAS: u32 = 1000;
/// At the start nobody knows the model, and no window is full.
pub(crate) const LEAD_IN_S: u32 = 500;

/// How `apa` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// It knows nothing of the model.
    Cold,
    /// It is given the true knee as a first guess.
    Knee,
    /// The target is fixed at the true knee: the horizontal axis alone is measured.
    Pinned,
}

#[derive(Clone, Debug)]
pub(crate) struct Combo {
    pub(crate) trace: String,
    pub(crate) plant: String,
    pub(crate) startup_s: u64,
    /// Made here, or of a file.
    pub(crate) synthetic: bool,
    pub(crate) contest: Contest,
}

impl Combo {
    pub(crate) fn label(&self) -> String {
        format!("{}/{}/{}s", self.trace, self.plant, self.startup_s)
    }
}

/// A plant with a knee: cores, a universal curve, a batch or connections, as its size suggests.
pub(crate) fn plant(knee: u32) -> Plant {
    match knee {
        2 => parse(
            "cpu-2",
            "kind = \"cpu\"\nservice_time = \"200ms\"\nknee = 2\n",
            CPU,
        ),
        6 => parse(
            "cpu-6",
            "kind = \"cpu\"\nservice_time = \"50ms\"\nknee = 6\n",
            CPU,
        ),
        40 => Plant::built_in("gpu").expect("built in"),
        _ => Plant::built_in("io").expect("built in"),
    }
}

pub(crate) const CPU: &str = "\
[resources]
cpu = { idle = 0.02, full = 0.98, follows = \"throughput\" }
memory = { idle = 0.40, full = 0.50, follows = \"concurrency\" }
io_wait = { idle = 0.01, full = 0.01, follows = \"throughput\" }
pressure = { idle = 0.01, full = 1.0, follows = \"waiting\" }
[noise]
service = 0.2
gauges = 0.02
";

pub(crate) const GPU: &str = "\
[resources]
cpu = { idle = 0.03, full = 0.20, follows = \"throughput\" }
gpu_sm = { idle = 0.0, full = 0.97, follows = \"throughput\" }
gpu_membw = { idle = 0.0, full = 0.80, follows = \"throughput\" }
memory = { idle = 0.60, full = 0.88, follows = \"concurrency\" }
[noise]
service = 0.2
gauges = 0.02
";

pub(crate) fn parse(name: &str, head: &str, tail: &str) -> Plant {
    let text = format!("{head}\n{tail}");
    let mut plant = Plant::parse(name, text.as_bytes()).expect("the texts here are right");
    name.clone_into(&mut plant.name);
    plant
}

/// The traces made here, for one plant.
fn synthetic(plant: &Plant, seed: u64) -> Vec<Trace> {
    let shapes = Shape::standard().into_iter();
    let traces = shapes.map(|(name, shape)| {
        let trace = shape.trace(name, Kind::Rate, seed);
        if name == AS_IT_IS {
            trace
        } else {
            sized(trace, plant)
        }
    });
    traces.collect()
}

/// The trace with its peak at [`PEAK_REPLICAS`].
pub(crate) fn sized(mut trace: Trace, plant: &Plant) -> Trace {
    let curve = plant.curve(Duration::ZERO);
    let peak = trace.segments.iter().map(|it| it.value).fold(0.0, f64::max);
    let capacity = PEAK_REPLICAS * curve.throughput(plant.best_point());
    if peak > 0.0 {
        for segment in &mut trace.segments {
            segment.value *= capacity / peak;
        }
    }
    trace
}

pub(crate) fn contest(trace: Trace, plant: Plant, start: Start, seed: u64) -> Contest {
    let knee = plant.best_point() as u32;
    let policy = Policy {
        max_replicas: MOST_REPLICAS,
        startup: Some(Duration::from_secs_f64(plant.startup.mean_s)),
        pinned_target: (start == Start::Pinned).then_some(knee),
        initial_target: (start == Start::Knee).then_some(knee),
        ..Policy::default()
    };
    let options = Options {
        seed,
        lead_in_s: LEAD_IN_S.min(trace.length_s / 3),
        ..Options::default()
    };
    let scenario = Scenario {
        trace,
        plant,
        options,
    };
    Contest { scenario, policy }
}

pub(crate) fn all(start: Start, seed: u64, files: &[Trace]) -> Vec<Combo> {
    let mut combos = Vec::new();
    for knee in KNEES {
        let plant = plant(knee);
        let made = synthetic(&plant, seed)
            .into_iter()
            .map(|trace| (trace, true));
        let read = files.iter().map(|trace| (trace.clone(), false));
        for (trace, synthetic) in made.chain(read) {
            for startup_s in STARTUPS_S {
                let plant = plant.clone().with_startup(Duration::from_secs(startup_s));
                combos.push(Combo {
                    trace: trace.name.clone(),
                    plant: plant.name.clone(),
                    startup_s,
                    synthetic,
                    contest: contest(trace.clone(), plant, start, seed),
                });
            }
        }
    }
    combos
}
