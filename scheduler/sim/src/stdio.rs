//! An outside program owns the plant: one line in and one line out for every second. Pure; whoever
//! runs a [`Session`] reads and writes the lines.
//!
//! ```text
//! {"policy":{...}}   ->  {"ready":true}
//! {"t":12,...}       ->  {"desired_replicas":5,"target_concurrency":6,"warm":2,"why":{...}}
//! ```
//!
//! A second that is left out is a gap and not a zero, and so is one whose gauges are null. A second
//! that came already, or is older than the newest, changes nothing and is answered with the standing
//! orders. Fields that nobody here knows are ignored.

use std::time::Duration;

use apa::{Group, HardwareClass, Resources, Sample, pool};
use serde::Serialize;
use serde_json::{Map, Value};
use shared::units::MonoTime;

use crate::policy::apa::Apa;
use crate::policy::warm::WarmPool;
use crate::policy::{Orders, Policy};

/// A longer gap teaches no more than this one: everything remembered has gone by then.
const LONGEST_GAP_S: u64 = 3600;
/// Later seconds are no times of this world, and their milliseconds would not be exact.
const LATEST_S: f64 = 1e12;
/// More replicas than this are a broken counter.
const MOST_REPLICAS: f64 = 1e6;
const NOT_DECIDED: &str = "no decision yet";

/// One run of an outside plant.
#[derive(Debug, Default)]
pub struct Session {
    lines: u64,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    BeforePolicy,
    Running(Box<Running>),
}

#[derive(Debug)]
struct Running {
    policy: Apa,
    warm: WarmPool,
    newest: Option<MonoTime>,
    standing: Option<Orders>,
}

/// A line that ends the run.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {wrong}")]
pub struct LineError {
    /// The first is 1.
    pub line: u64,
    pub wrong: Wrong,
}

#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error("not a line of JSON: {0}; expected one object")]
    NotJson(serde_json::Error),
    #[error("expected an object, found {0}")]
    NotAnObject(&'static str),
    #[error("field {0:?} is missing")]
    Missing(&'static str),
    #[error("field {field:?} is {found}: expected {expected}")]
    Invalid {
        field: &'static str,
        found: String,
        expected: &'static str,
    },
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
}

/// What there should be after a second, as it is written.
#[derive(Serialize)]
struct Answer<'a> {
    desired_replicas: u32,
    target_concurrency: u32,
    warm: u32,
    why: Why<'a>,
}

#[derive(Serialize)]
struct Why<'a> {
    horizontal: &'a str,
    vertical: &'a str,
}

impl Session {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next line, with or without its end, and gives the one to write, without.
    pub fn line(&mut self, line: &[u8]) -> Result<String, LineError> {
        self.lines += 1;
        let answered = match object(line) {
            Ok(object) => self.state.take(&object),
            Err(wrong) => Err(wrong),
        };
        answered.map_err(|wrong| LineError {
            line: self.lines,
            wrong,
        })
    }
}

impl State {
    fn take(&mut self, object: &Map<String, Value>) -> Result<String, Wrong> {
        match self {
            State::BeforePolicy => {
                let policy = policy(object)?;
                *self = State::Running(Box::new(Running {
                    warm: WarmPool::new(pool::Policy::default(), policy.startup),
                    policy: Apa::new(policy),
                    newest: None,
                    standing: None,
                }));
                Ok(written(&Ready { ready: true }))
            }
            State::Running(running) => running.second(&Fields(object)),
        }
    }
}

impl Running {
    fn second(&mut self, fields: &Fields<'_>) -> Result<String, Wrong> {
        let at = at(fields)?;
        let sample = sample(fields)?;
        let late = self.newest.is_some_and(|newest| at <= newest);
        if let (true, Some(standing)) = (late, &self.standing) {
            return Ok(answer(standing));
        }
        for missed in missed(self.newest, at) {
            let orders = self.policy.second(None, missed);
            self.warm.second(orders.desired_replicas, false, missed);
        }
        let mut orders = self.policy.second(sample.as_ref(), at);
        orders.warm = self
            .warm
            .second(orders.desired_replicas, sample.is_some(), at);
        let answer = answer(&orders);
        self.newest = Some(at);
        self.standing = Some(orders);
        Ok(answer)
    }
}

/// The ends of the seconds that were left out.
fn missed(newest: Option<MonoTime>, at: MonoTime) -> impl Iterator<Item = MonoTime> {
    let gap = newest.map_or(Duration::ZERO, |newest| at.saturating_since(newest));
    // Samples that are taken a little early or late leave no second out.
    let seconds = (gap.as_secs_f64().round() as u64).saturating_sub(1);
    let first = seconds.saturating_sub(LONGEST_GAP_S);
    let newest = newest.unwrap_or(MonoTime::ZERO);
    (first..seconds).map(move |n| newest + Duration::from_secs(n + 1))
}

fn answer(orders: &Orders) -> String {
    let told = |text: &'_ Option<String>| text.clone().unwrap_or_else(|| NOT_DECIDED.into());
    written(&Answer {
        desired_replicas: orders.desired_replicas,
        target_concurrency: orders.target_concurrency.unwrap_or(1),
        warm: orders.warm,
        why: Why {
            horizontal: &told(&orders.horizontal),
            vertical: &told(&orders.vertical),
        },
    })
}

fn written(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a plain record")
}

fn object(line: &[u8]) -> Result<Map<String, Value>, Wrong> {
    match serde_json::from_slice(line).map_err(Wrong::NotJson)? {
        Value::Object(object) => Ok(object),
        other => Err(Wrong::NotAnObject(kind(&other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The policy of the first line; what it leaves out, or null, has the autoscaler's default.
fn policy(object: &Map<String, Value>) -> Result<apa::Policy, Wrong> {
    let fields = match object.get("policy") {
        Some(Value::Object(fields)) => Fields(fields),
        Some(other) => {
            return Err(Wrong::Invalid {
                field: "policy",
                found: kind(other).into(),
                expected: "an object",
            });
        }
        None => return Err(Wrong::Missing("policy")),
    };
    let usual = apa::Policy::default();
    let policy = apa::Policy {
        min_replicas: fields.count("min_replicas")?.unwrap_or(usual.min_replicas),
        max_replicas: fields
            .least_one("max_replicas")?
            .unwrap_or(usual.max_replicas),
        scale_to_zero: fields.flag("scale_to_zero")?.unwrap_or(usual.scale_to_zero),
        provisioned_concurrency: fields
            .count("provisioned_concurrency")?
            .unwrap_or(usual.provisioned_concurrency),
        latency_objective: fields.length("latency_objective_ms", 1e-3)?,
        startup: fields.length("startup_s", 1.0)?,
        pinned_target: fields.least_one("pinned_target_concurrency")?,
        initial_target: fields.least_one("initial_target_concurrency")?,
        max_target: fields
            .least_one("max_target_concurrency")?
            .unwrap_or(usual.max_target),
        ..usual
    };
    if policy.min_replicas > policy.max_replicas {
        return Err(Wrong::Invalid {
            field: "min_replicas",
            found: policy.min_replicas.to_string(),
            expected: "no more than max_replicas",
        });
    }
    Ok(policy)
}

/// The end of the second that begins at `t`.
fn at(fields: &Fields<'_>) -> Result<MonoTime, Wrong> {
    let expected = "seconds since the start, not negative";
    let t = fields.required("t")?;
    let t = fields.number("t", t, expected)?;
    if t > LATEST_S {
        return Err(fields.invalid("t", expected));
    }
    Ok(MonoTime::from_millis((t * 1000.0).round() as u64) + Duration::from_secs(1))
}

/// `None` where a gauge is null: nothing was measured in the second.
fn sample(fields: &Fields<'_>) -> Result<Option<Sample>, Wrong> {
    let active = fields.measured("active")?;
    let queued = fields.measured("queued")?;
    let arrivals = fields.measured("arrivals")?;
    let completions = fields.measured("completions")?;
    let replicas_ready = fields.measured("replicas_ready")?;
    let replicas_starting = fields.optional("replicas_starting")?;
    let rejected = fields.optional("rejected")?;
    let group = Group {
        class: HardwareClass::default(),
        p50_ms: fields.optional("p50_ms")?,
        p95_ms: fields.optional("p95_ms")?,
        resources: resources(fields)?,
        ..Group::default()
    };
    let (Some(active), Some(queued), Some(replicas_ready)) = (active, queued, replicas_ready)
    else {
        return Ok(None);
    };
    let replicas_ready = replicas(replicas_ready);
    let completions = completions.unwrap_or(0.0);
    Ok(Some(Sample {
        active,
        queued,
        arrivals: arrivals.unwrap_or(0.0),
        completions,
        rejected: rejected.unwrap_or(0.0),
        replicas_ready,
        replicas_starting: replicas_starting.map_or(0, replicas),
        groups: vec![Group {
            replicas: replicas_ready,
            active,
            completions,
            ..group
        }],
    }))
}

fn replicas(count: f64) -> u32 {
    count.round().clamp(0.0, MOST_REPLICAS) as u32
}

fn resources(fields: &Fields<'_>) -> Result<Resources, Wrong> {
    let object = match fields.0.get("resources") {
        None | Some(Value::Null) => return Ok(Resources::default()),
        Some(Value::Object(object)) => object,
        Some(_) => return Err(fields.invalid("resources", "an object or null")),
    };
    let of = Fields(object);
    Ok(Resources {
        cpu: of.optional("cpu")?,
        gpu_sm: of.optional("gpu_sm")?,
        gpu_tensor: of.optional("gpu_tensor")?,
        gpu_membw: of.optional("gpu_membw")?,
        memory: of.optional("memory")?,
        io_wait: of.optional("io_wait")?,
        pressure: of.optional("pressure")?,
    })
}

/// The fields of one object. A number that may be wrong is wrong only in its kind: what is measured
/// may be absurd, and the autoscaler sees to that.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn required(&self, field: &'static str) -> Result<&Value, Wrong> {
        self.0.get(field).ok_or(Wrong::Missing(field))
    }

    /// A number that must be there, and may be null.
    fn measured(&self, field: &'static str) -> Result<Option<f64>, Wrong> {
        self.required(field)?;
        self.optional(field)
    }

    fn optional(&self, field: &'static str) -> Result<Option<f64>, Wrong> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.invalid(field, "a number or null")),
            },
        }
    }

    fn number(
        &self,
        field: &'static str,
        value: &Value,
        expected: &'static str,
    ) -> Result<f64, Wrong> {
        let number = value.as_f64().filter(|number| *number >= 0.0);
        number.ok_or_else(|| self.invalid(field, expected))
    }

    fn count(&self, field: &'static str) -> Result<Option<u32>, Wrong> {
        self.whole(field, 0, "a whole number that is not negative")
    }

    fn least_one(&self, field: &'static str) -> Result<Option<u32>, Wrong> {
        self.whole(field, 1, "a whole number of at least 1")
    }

    fn whole(
        &self,
        field: &'static str,
        least: u32,
        expected: &'static str,
    ) -> Result<Option<u32>, Wrong> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = self.number(field, value, expected)?;
                let whole = number.fract() == 0.0 && number <= f64::from(u32::MAX);
                if !whole || number < f64::from(least) {
                    return Err(self.invalid(field, expected));
                }
                Ok(Some(number as u32))
            }
        }
    }

    fn flag(&self, field: &'static str) -> Result<Option<bool>, Wrong> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.invalid(field, "true or false")),
        }
    }

    fn length(&self, field: &'static str, unit_s: f64) -> Result<Option<Duration>, Wrong> {
        let expected = "a length of time that is not negative";
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let seconds = self.number(field, value, expected)? * unit_s;
                let length = Duration::try_from_secs_f64(seconds);
                length.map(Some).map_err(|_| self.invalid(field, expected))
            }
        }
    }

    fn invalid(&self, field: &'static str, expected: &'static str) -> Wrong {
        let found = self.0.get(field).map_or("missing".into(), shown);
        Wrong::Invalid {
            field,
            found,
            expected,
        }
    }
}

/// A value in an error, cut to what a line bears.
fn shown(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(_) | Value::Array(_) | Value::Object(_) => kind(value).into(),
    }
}

#[cfg(test)]
mod tests;
