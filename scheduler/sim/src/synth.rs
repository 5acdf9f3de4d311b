//! Traces that are made here: the shapes on which autoscalers differ. Deterministic by seed.

use std::f64::consts::TAU;

use crate::chance::{Chance, Stream};
use crate::trace::{Kind, Trace};

/// A shape of traffic, in requests a second (or at once, for a trace of concurrency).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// `low`, then from `at_s` on `high` for `for_s`, then `low` again.
    Step {
        low: f64,
        high: f64,
        at_s: u32,
        for_s: u32,
        length_s: u32,
    },
    /// `low`, then straight up to `high` in `over_s` and staying there.
    Ramp {
        low: f64,
        high: f64,
        at_s: u32,
        over_s: u32,
        length_s: u32,
    },
    /// Between `low` and `high` with a period.
    Sine {
        low: f64,
        high: f64,
        period_s: u32,
        length_s: u32,
    },
    /// A day's course: low at night, a rise in the morning, a dip at noon, most in the evening, with
    /// noise that lasts for minutes. `length_s` is one such day: a shorter one is a day compressed.
    Diurnal {
        low: f64,
        high: f64,
        /// Standard deviation of the noise's logarithm.
        noise: f64,
        days: u32,
        length_s: u32,
    },
    /// Silent, then busy, with lengths drawn around the means.
    Bursts {
        low: f64,
        high: f64,
        on_s: u32,
        off_s: u32,
        length_s: u32,
    },
    /// `low`, then within `rise_s` up to `high`, from where it dies away by half every `half_life_s`.
    FlashCrowd {
        low: f64,
        high: f64,
        at_s: u32,
        rise_s: u32,
        half_life_s: u32,
        length_s: u32,
    },
}

/// How fast the diurnal noise forgets, and how long one of its values holds.
const NOISE_KEEPS: f64 = 0.9;
const NOISE_STEP_S: u32 = 10;

impl Shape {
    /// The standard set: a name and a shape each.
    pub fn standard() -> [(&'static str, Shape); 6] {
        [
            (
                "step",
                Shape::Step {
                    low: 20.0,
                    high: 400.0,
                    at_s: 600,
                    for_s: 900,
                    length_s: 2400,
                },
            ),
            (
                "ramp",
                Shape::Ramp {
                    low: 10.0,
                    high: 10_000.0,
                    at_s: 600,
                    over_s: 60,
                    length_s: 1800,
                },
            ),
            (
                "sine",
                Shape::Sine {
                    low: 20.0,
                    high: 400.0,
                    period_s: 180,
                    length_s: 3600,
                },
            ),
            (
                "diurnal",
                Shape::Diurnal {
                    low: 40.0,
                    high: 600.0,
                    noise: 0.1,
                    days: 1,
                    length_s: 86_400,
                },
            ),
            (
                "bursts",
                Shape::Bursts {
                    low: 2.0,
                    high: 300.0,
                    on_s: 60,
                    off_s: 240,
                    length_s: 7200,
                },
            ),
            (
                "flash-crowd",
                Shape::FlashCrowd {
                    low: 30.0,
                    high: 1500.0,
                    at_s: 900,
                    rise_s: 30,
                    half_life_s: 300,
                    length_s: 3600,
                },
            ),
        ]
    }

    pub fn trace(&self, name: &str, kind: Kind, seed: u64) -> Trace {
        let mut trace = Trace::empty(name, kind);
        let mut chance = Chance::new(seed, Stream::Synthetic);
        match *self {
            Shape::Step {
                low,
                high,
                at_s,
                for_s,
                length_s,
            } => {
                for t in 0..length_s {
                    let up = t >= at_s && t - at_s < for_s;
                    trace.push_second(if up { high } else { low }, None);
                }
            }
            Shape::Ramp {
                low,
                high,
                at_s,
                over_s,
                length_s,
            } => {
                for t in 0..length_s {
                    let share =
                        (f64::from(t.saturating_sub(at_s)) / f64::from(over_s.max(1))).min(1.0);
                    trace.push_second(low + (high - low) * share, None);
                }
            }
            Shape::Sine {
                low,
                high,
                period_s,
                length_s,
            } => {
                for t in 0..length_s {
                    let phase = TAU * f64::from(t) / f64::from(period_s.max(1));
                    trace.push_second(low + (high - low) * (1.0 - phase.cos()) / 2.0, None);
                }
            }
            Shape::Diurnal {
                low,
                high,
                noise,
                days,
                length_s,
            } => diurnal(&mut trace, &mut chance, low..high, noise, days, length_s),
            Shape::Bursts {
                low,
                high,
                on_s,
                off_s,
                length_s,
            } => {
                let mut on = false;
                while trace.length_s < length_s {
                    let mean = f64::from(if on { on_s } else { off_s });
                    let lasts = (mean * chance.lognormal_factor(0.4)).max(1.0) as u32;
                    for _ in 0..lasts.min(length_s - trace.length_s) {
                        trace.push_second(if on { high } else { low }, None);
                    }
                    on = !on;
                }
            }
            Shape::FlashCrowd {
                low,
                high,
                at_s,
                rise_s,
                half_life_s,
                length_s,
            } => {
                for t in 0..length_s {
                    let since = f64::from(t) - f64::from(at_s);
                    let rise = f64::from(rise_s.max(1));
                    let crowd = match since {
                        s if s < 0.0 => 0.0,
                        s if s < rise => s / rise,
                        s => 0.5f64.powf((s - rise) / f64::from(half_life_s.max(1))),
                    };
                    trace.push_second(low + (high - low) * crowd, None);
                }
            }
        }
        trace
    }
}

fn diurnal(
    trace: &mut Trace,
    chance: &mut Chance,
    range: std::ops::Range<f64>,
    noise: f64,
    days: u32,
    day_s: u32,
) {
    let mut drift = chance.normal();
    for t in 0..days.saturating_mul(day_s) {
        if t % NOISE_STEP_S == 0 {
            drift =
                NOISE_KEEPS * drift + (1.0 - NOISE_KEEPS * NOISE_KEEPS).sqrt() * chance.normal();
        }
        let hour = 24.0 * f64::from(t % day_s) / f64::from(day_s);
        // Each bump: its hour, its width in hours, its height.
        let bump = |at: f64, width: f64, height: f64| {
            let away = (hour - at).abs().min(24.0 - (hour - at).abs());
            height * (-(away / width).powi(2)).exp()
        };
        let course = (bump(11.0, 3.0, 0.8) + bump(20.0, 3.5, 1.0)).min(1.0);
        let mean = range.start + (range.end - range.start) * course;
        trace.push_second(mean * (noise * drift - noise * noise / 2.0).exp(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(shape: Shape, seed: u64) -> Vec<f64> {
        let trace = shape.trace("t", Kind::Rate, seed);
        trace.by_second().map(|segment| segment.value).collect()
    }

    #[test]
    fn the_ramp_reaches_its_height_in_the_time_stated_and_stays() {
        let (_, ramp) = Shape::standard()[1];
        let values = values(ramp, 1);
        assert_eq!(
            (values[600], values[660], values[1799]),
            (10.0, 10_000.0, 10_000.0)
        );
        assert!((values[630] - 5005.0).abs() < 1e-9);
    }

    #[test]
    fn a_step_comes_and_goes() {
        let step = Shape::Step {
            low: 1.0,
            high: 9.0,
            at_s: 10,
            for_s: 5,
            length_s: 20,
        };
        let values = values(step, 1);
        assert_eq!(
            (values[9], values[10], values[14], values[15]),
            (1.0, 9.0, 9.0, 1.0)
        );
    }

    #[test]
    fn every_standard_shape_is_the_same_for_the_same_seed_and_never_negative() {
        for (name, shape) in Shape::standard() {
            let first = values(shape, 3);
            assert_eq!(first, values(shape, 3), "{name}");
            assert!(
                first.iter().all(|value| value.is_finite() && *value >= 0.0),
                "{name}"
            );
        }
        let (_, diurnal) = Shape::standard()[3];
        assert_ne!(values(diurnal, 3), values(diurnal, 4));
    }

    #[test]
    fn a_day_is_quiet_at_night_and_busiest_in_the_evening() {
        let (_, diurnal) = Shape::standard()[3];
        let values = values(diurnal, 3);
        let hour = |h: usize| values[h * 3600..(h + 1) * 3600].iter().sum::<f64>() / 3600.0;
        assert!(
            hour(3) < 60.0 && hour(19) > 500.0,
            "{} {}",
            hour(3),
            hour(19)
        );
    }

    #[test]
    fn bursts_are_on_for_about_the_share_asked_for() {
        let (_, bursts) = Shape::standard()[4];
        let values = values(bursts, 3);
        let on = values.iter().filter(|value| **value == 300.0).count();
        let share = on as f64 / values.len() as f64;
        assert!((0.1..0.3).contains(&share), "{share}");
    }
}
