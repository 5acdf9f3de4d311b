//! The file format of plants: TOML, each mistake with its line, what is wrong and what was expected.

use std::ops::Range;
use std::time::Duration;

use apa::HardwareClass;
use serde::Deserialize;
use toml::Spanned;

use super::{
    Beyond, Curve, DEFAULT_QUEUE, Follows, HardLimit, Noise, Phase, Plant, Startup, Usage, Use,
};
use crate::span::Span;

/// The built-in plants by name: files like any other.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("cpu", include_str!("built_in/cpu.toml")),
    ("gpu", include_str!("built_in/gpu.toml")),
    ("io", include_str!("built_in/io.toml")),
];

/// Files above this size are no plants.
const LARGEST_BYTES: usize = 1 << 20;

/// What is wrong in a plant file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct PlantMistake {
    pub file: String,
    /// From 1.
    pub line: usize,
    pub problem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    kind: Spanned<Kind>,
    service_time: Spanned<Span>,
    knee: Option<Spanned<f64>>,
    slope: Option<Spanned<f64>>,
    contention: Option<Spanned<f64>>,
    coherency: Option<Spanned<f64>>,
    class: Option<String>,
    queue: Option<Spanned<f64>>,
    hard_limit: Option<Spanned<f64>>,
    beyond_hard_limit: Option<Spanned<RawBeyond>>,
    startup: Option<RawStartup>,
    noise: Option<RawNoise>,
    #[serde(default)]
    resources: RawUsage,
    #[serde(default)]
    changes: Vec<Spanned<RawChange>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Cpu,
    Gpu,
    Io,
    Usl,
    FlatThenLinear,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawBeyond {
    Wait,
    Refuse,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStartup {
    mean: Spanned<Span>,
    spread: Option<Spanned<f64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNoise {
    service: Option<Spanned<f64>>,
    gauges: Option<Spanned<f64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUsage {
    cpu: Option<Spanned<RawUse>>,
    gpu_sm: Option<Spanned<RawUse>>,
    gpu_tensor: Option<Spanned<RawUse>>,
    gpu_membw: Option<Spanned<RawUse>>,
    memory: Option<Spanned<RawUse>>,
    io_wait: Option<Spanned<RawUse>>,
    pressure: Option<Spanned<RawUse>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUse {
    idle: f64,
    full: f64,
    follows: RawFollows,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawFollows {
    Throughput,
    Concurrency,
    Waiting,
}

/// What is not said stays as it was before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChange {
    at: Spanned<Span>,
    service_time: Option<Spanned<Span>>,
    knee: Option<Spanned<f64>>,
    slope: Option<Spanned<f64>>,
    contention: Option<Spanned<f64>>,
    coherency: Option<Spanned<f64>>,
}

/// The numbers of a curve with the places where they stand.
#[derive(Clone)]
struct Numbers {
    service_time: Spanned<Span>,
    knee: Option<Spanned<f64>>,
    slope: Option<Spanned<f64>>,
    contention: Option<Spanned<f64>>,
    coherency: Option<Spanned<f64>>,
}

/// A problem and the bytes of the file that it is about.
struct At {
    bytes: Range<usize>,
    problem: String,
}

impl Plant {
    /// A built-in plant: `cpu`, `gpu`, `io`.
    pub fn built_in(name: &str) -> Option<Plant> {
        let (name, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(Plant::parse(name, text.as_bytes()).expect("built-in plants are tested"))
    }

    /// Reads a plant. `file` is how mistakes call it.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Plant, PlantMistake> {
        let mistake = |line, problem| PlantMistake {
            file: file.to_owned(),
            line,
            problem,
        };
        if bytes.len() > LARGEST_BYTES {
            let problem = format!(
                "the file has {} bytes: expected a plant of at most {LARGEST_BYTES}",
                bytes.len()
            );
            return Err(mistake(1, problem));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = line_of(bytes, error.valid_up_to());
            mistake(line, "not UTF-8: expected a TOML text".into())
        })?;
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            mistake(line_of(bytes, at), error.message().trim().to_owned())
        })?;
        checked(file, raw)
            .map_err(|At { bytes: at, problem }| mistake(line_of(bytes, at.start), problem))
    }
}

fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes.iter().take(at).filter(|byte| **byte == b'\n').count()
}

fn wrong<T>(value: &Spanned<T>, problem: String) -> At {
    At {
        bytes: value.span(),
        problem,
    }
}

fn above_zero(name: &str, value: &Spanned<f64>) -> Result<f64, At> {
    let number = *value.get_ref();
    if number.is_finite() && number > 0.0 {
        Ok(number)
    } else {
        let problem = format!("{name} is {number}: expected a number above 0");
        Err(wrong(value, problem))
    }
}

fn within(name: &str, value: &Spanned<f64>, range: Range<f64>) -> Result<f64, At> {
    let number = *value.get_ref();
    if (range.start..=range.end).contains(&number) {
        Ok(number)
    } else {
        let (start, end) = (range.start, range.end);
        let problem = format!("{name} is {number}: expected {start} to {end}");
        Err(wrong(value, problem))
    }
}

fn at_least_one(name: &str, value: &Spanned<f64>) -> Result<f64, At> {
    let number = *value.get_ref();
    if (1.0..=1e6).contains(&number) {
        Ok(number)
    } else {
        let problem = format!("{name} is {number}: expected a number from 1 to 1000000");
        Err(wrong(value, problem))
    }
}

fn positive(name: &str, value: &Spanned<Span>) -> Result<f64, At> {
    let seconds = value.get_ref().seconds();
    if seconds > 0.0 {
        Ok(seconds)
    } else {
        let problem = format!("{name} is 0: expected a span of time above 0, such as \"50ms\"");
        Err(wrong(value, problem))
    }
}

fn checked(file: &str, raw: Raw) -> Result<Plant, At> {
    let kind = *raw.kind.get_ref();
    let mut numbers = Numbers {
        service_time: raw.service_time,
        knee: raw.knee,
        slope: raw.slope,
        contention: raw.contention,
        coherency: raw.coherency,
    };
    let mut phases = vec![Phase {
        from: Duration::ZERO,
        curve: curve(kind, raw.kind.span(), &numbers)?,
    }];
    for change in raw.changes {
        let place = change.span();
        let change = change.into_inner();
        let from = change.at.get_ref().0;
        if from <= phases.last().map_or(Duration::ZERO, |phase| phase.from) {
            let problem = "a change must lie after the one before it and after the start: expected a \
                           later `at`";
            return Err(wrong(&change.at, problem.into()));
        }
        let then = |new: Option<Spanned<f64>>, old: Option<Spanned<f64>>| new.or(old);
        numbers = Numbers {
            service_time: change.service_time.unwrap_or(numbers.service_time),
            knee: then(change.knee, numbers.knee),
            slope: then(change.slope, numbers.slope),
            contention: then(change.contention, numbers.contention),
            coherency: then(change.coherency, numbers.coherency),
        };
        phases.push(Phase {
            from,
            curve: curve(kind, place, &numbers)?,
        });
    }
    let beyond = raw.beyond_hard_limit;
    let hard_limit = match (&raw.hard_limit, beyond) {
        (Some(limit), beyond) => Some(HardLimit {
            requests: at_least_one("hard_limit", limit)?,
            beyond: match beyond.map(Spanned::into_inner) {
                None | Some(RawBeyond::Wait) => Beyond::Wait,
                Some(RawBeyond::Refuse) => Beyond::Refuse,
            },
        }),
        (None, Some(beyond)) => {
            let problem = "beyond_hard_limit without a hard_limit: expected a hard_limit beside it";
            return Err(wrong(&beyond, problem.into()));
        }
        (None, None) => None,
    };
    let noise = raw.noise.unwrap_or_default();
    let share = |name, value: &Option<Spanned<f64>>, usual: f64, most: f64| {
        value
            .as_ref()
            .map_or(Ok(usual), |value| within(name, value, 0.0..most))
    };
    Ok(Plant {
        name: file.to_owned(),
        class: HardwareClass(raw.class.unwrap_or_else(|| class(kind).to_owned())),
        phases,
        startup: match &raw.startup {
            Some(startup) => Startup {
                mean_s: startup.mean.get_ref().seconds(),
                spread: share("startup.spread", &startup.spread, 0.0, 3.0)?,
            },
            None => Startup {
                mean_s: 10.0,
                spread: 0.0,
            },
        },
        noise: Noise {
            service: share("noise.service", &noise.service, 0.0, 3.0)?,
            gauges: share("noise.gauges", &noise.gauges, 0.0, 1.0)?,
        },
        queue: raw
            .queue
            .as_ref()
            .map_or(Ok(DEFAULT_QUEUE), |queue| within("queue", queue, 0.0..1e9))?,
        hard_limit,
        usage: usage(&raw.resources)?,
    })
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Gpu => "gpu",
        Kind::Cpu | Kind::Io | Kind::Usl | Kind::FlatThenLinear => "cpu",
    }
}

fn curve(kind: Kind, place: Range<usize>, numbers: &Numbers) -> Result<Curve, At> {
    let service_s = positive("service_time", &numbers.service_time)?;
    let name = match kind {
        Kind::Cpu => "cpu",
        Kind::Gpu => "gpu",
        Kind::Io => "io",
        Kind::Usl => "usl",
        Kind::FlatThenLinear => "flat-then-linear",
    };
    let unused = |key: &str, value: &Option<Spanned<f64>>| match value {
        Some(value) => Err(wrong(value, format!("a plant of kind {name} has no {key}"))),
        None => Ok(()),
    };
    let needed = |key: &str, value: &Option<Spanned<f64>>| match value {
        Some(value) => Ok(value.clone()),
        None => Err(At {
            bytes: place.clone(),
            problem: format!("{key} is missing: a plant of kind {name} needs it"),
        }),
    };
    let knee = |value: &Option<Spanned<f64>>| {
        let value = needed("knee", value)?;
        above_zero("knee", &value).and_then(|_| at_least_one("knee", &value))
    };
    match kind {
        Kind::Cpu | Kind::Io | Kind::FlatThenLinear => {
            unused("contention", &numbers.contention)?;
            unused("coherency", &numbers.coherency)?;
            let slope = match &numbers.slope {
                Some(slope) if kind == Kind::FlatThenLinear => within("slope", slope, 0.0..100.0)?,
                slope => unused("slope", slope).map(|()| 1.0)?,
            };
            Ok(Curve::FlatThenLinear {
                service_s,
                knee: knee(&numbers.knee)?,
                slope,
            })
        }
        Kind::Gpu => {
            unused("contention", &numbers.contention)?;
            unused("coherency", &numbers.coherency)?;
            Ok(Curve::Batching {
                service_s,
                batch: knee(&numbers.knee)?,
                slope: within("slope", &needed("slope", &numbers.slope)?, 0.0..100.0)?,
            })
        }
        Kind::Usl => {
            unused("knee", &numbers.knee)?;
            unused("slope", &numbers.slope)?;
            let contention = needed("contention", &numbers.contention)?;
            let coherency = needed("coherency", &numbers.coherency)?;
            Ok(Curve::Universal {
                service_s,
                contention: within("contention", &contention, 0.0..1.0)?,
                coherency: within("coherency", &coherency, 0.0..1.0)?,
            })
        }
    }
}

fn usage(raw: &RawUsage) -> Result<Usage, At> {
    let one = |name: &str, value: &Option<Spanned<RawUse>>| {
        let Some(value) = value else {
            return Ok(None);
        };
        let RawUse {
            idle,
            full,
            follows,
        } = *value.get_ref();
        for (key, number) in [("idle", idle), ("full", full)] {
            if !(0.0..=1.0).contains(&number) {
                let problem =
                    format!("resources.{name}.{key} is {number}: expected a share from 0 to 1");
                return Err(wrong(value, problem));
            }
        }
        Ok(Some(Use {
            idle,
            full,
            follows: match follows {
                RawFollows::Throughput => Follows::Throughput,
                RawFollows::Concurrency => Follows::Concurrency,
                RawFollows::Waiting => Follows::Waiting,
            },
        }))
    };
    Ok(Usage {
        cpu: one("cpu", &raw.cpu)?,
        gpu_sm: one("gpu_sm", &raw.gpu_sm)?,
        gpu_tensor: one("gpu_tensor", &raw.gpu_tensor)?,
        gpu_membw: one("gpu_membw", &raw.gpu_membw)?,
        memory: one("memory", &raw.memory)?,
        io_wait: one("io_wait", &raw.io_wait)?,
        pressure: one("pressure", &raw.pressure)?,
    })
}
