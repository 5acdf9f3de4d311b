//! What deciding costs: many served entities, one second each.

use std::time::{Duration, Instant};

use apa::{Autoscaler, Group, Policy, Sample};
use shared::units::MonoTime;

use crate::table::Target;

const ENTITIES: u32 = 10_000;
/// All windows are full after so long.
const WARM_UP_S: u64 = 400;
/// Horizontal decisions fall into some of these seconds, vertical ones into one at least.
const MEASURED_S: u64 = 60;
const HORIZONTAL_WITHIN: Duration = Duration::from_millis(50);

/// A second of an entity of its own size, which no two seconds have alike.
fn sample(entity: u32, at_s: u64) -> Sample {
    let wave = ((at_s as f64 / 40.0 + f64::from(entity)).sin() + 1.5) * f64::from(entity % 97 + 1);
    let replicas = entity % 20 + 1;
    Sample {
        active: wave,
        queued: 0.0,
        arrivals: wave * 10.0,
        completions: wave * 10.0,
        replicas_ready: replicas,
        groups: vec![Group {
            replicas,
            active: wave,
            completions: wave * 10.0,
            p50_ms: Some(100.0),
            p95_ms: Some(130.0),
            ..Group::default()
        }],
        ..Sample::default()
    }
}

pub(crate) fn targets() -> Vec<Target> {
    let policy = Policy {
        startup: Some(Duration::from_secs(10)),
        ..Policy::default()
    };
    let mut entities: Vec<Autoscaler> = (0..ENTITIES)
        .map(|_| Autoscaler::new(&policy, 1, MonoTime::ZERO))
        .collect();
    let (mut horizontal, mut vertical) = (Duration::ZERO, Duration::ZERO);
    let mut sum = Duration::ZERO;
    for at_s in 1..=WARM_UP_S + MEASURED_S {
        let samples: Vec<Sample> = (0..ENTITIES).map(|entity| sample(entity, at_s)).collect();
        let now = MonoTime::from_secs(at_s);
        let before = Instant::now();
        let mut verticals = 0_usize;
        for (autoscaler, sample) in entities.iter_mut().zip(samples) {
            verticals += autoscaler.second(&policy, Some(sample), now).vertical.len();
        }
        let took = before.elapsed();
        if at_s > WARM_UP_S {
            sum += took;
            if verticals > 0 {
                vertical = vertical.max(took);
            } else {
                horizontal = horizontal.max(took);
            }
        }
    }
    let ms = |it: Duration| it.as_secs_f64() * 1000.0;
    vec![Target::new(
        format!("a second of {ENTITIES} served entities on one core"),
        format!(
            "worst {:.1} ms, mean {:.1} ms; with vertical decisions {:.1} ms",
            ms(horizontal),
            ms(sum) / MEASURED_S as f64,
            ms(vertical)
        ),
        "horizontal under 50 ms",
        horizontal < HORIZONTAL_WITHIN,
    )]
}
