//! Writes a plant as the file it would be read from.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Beyond, Curve, Follows, Plant, Use};
use crate::span::Span;

impl Plant {
    /// The plant's file. Spans are written to a microsecond.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        // Writing to a text cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let start = self.curve(Duration::ZERO);
        let kind = match start {
            Curve::FlatThenLinear { .. } => "flat-then-linear",
            Curve::Batching { .. } => "gpu",
            Curve::Universal { .. } => "usl",
        };
        writeln!(text, "kind = \"{kind}\"")?;
        numbers(text, start)?;
        // A TOML string is escaped as a JSON string is.
        let class = serde_json::Value::from(self.class.0.as_str());
        writeln!(text, "class = {class}")?;
        writeln!(text, "queue = {:?}", self.queue)?;
        if let Some(limit) = self.hard_limit {
            let beyond = match limit.beyond {
                Beyond::Wait => "wait",
                Beyond::Refuse => "refuse",
            };
            writeln!(text, "hard_limit = {:?}", limit.requests)?;
            writeln!(text, "beyond_hard_limit = \"{beyond}\"")?;
        }
        writeln!(text, "\n[startup]")?;
        writeln!(text, "mean = \"{}\"", span(self.startup.mean_s))?;
        writeln!(text, "spread = {:?}", self.startup.spread)?;
        writeln!(text, "\n[noise]")?;
        writeln!(text, "service = {:?}", self.noise.service)?;
        writeln!(text, "gauges = {:?}", self.noise.gauges)?;
        writeln!(text, "\n[resources]")?;
        let usage = &self.usage;
        for (name, used) in [
            ("cpu", usage.cpu),
            ("gpu_sm", usage.gpu_sm),
            ("gpu_tensor", usage.gpu_tensor),
            ("gpu_membw", usage.gpu_membw),
            ("memory", usage.memory),
            ("io_wait", usage.io_wait),
            ("pressure", usage.pressure),
        ] {
            if let Some(used) = used {
                resource(text, name, used)?;
            }
        }
        for phase in self.phases.iter().skip(1) {
            writeln!(text, "\n[[changes]]")?;
            writeln!(text, "at = \"{}\"", span(phase.from.as_secs_f64()))?;
            numbers(text, &phase.curve)?;
        }
        Ok(())
    }
}

fn numbers(text: &mut String, curve: &Curve) -> std::fmt::Result {
    let (service_s, keys) = match *curve {
        Curve::FlatThenLinear {
            service_s,
            knee,
            slope,
        } => (service_s, [("knee", knee), ("slope", slope)]),
        Curve::Batching {
            service_s,
            batch,
            slope,
        } => (service_s, [("knee", batch), ("slope", slope)]),
        Curve::Universal {
            service_s,
            contention,
            coherency,
        } => (
            service_s,
            [("contention", contention), ("coherency", coherency)],
        ),
    };
    writeln!(text, "service_time = \"{}\"", span(service_s))?;
    for (key, number) in keys {
        writeln!(text, "{key} = {number:?}")?;
    }
    Ok(())
}

fn resource(text: &mut String, name: &str, used: Use) -> std::fmt::Result {
    let Use {
        idle,
        full,
        follows,
    } = used;
    let follows = match follows {
        Follows::Throughput => "throughput",
        Follows::Concurrency => "concurrency",
        Follows::Waiting => "waiting",
    };
    writeln!(
        text,
        "{name} = {{ idle = {idle:.4}, full = {full:.4}, follows = \"{follows}\" }}"
    )
}

/// At least a microsecond: nothing takes no time.
fn span(seconds: f64) -> Span {
    Span(Duration::from_secs_f64(seconds.max(1e-6)))
}
