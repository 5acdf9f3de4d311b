//! A number over time, to take its mean weighted by how long it had each value. Pure.

use shared::units::MonoTime;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Gauge {
    value: u32,
    /// Value times seconds since the stretch began.
    integral: f64,
    changed: MonoTime,
}

impl Gauge {
    pub(crate) fn new(now: MonoTime) -> Self {
        Self {
            value: 0,
            integral: 0.0,
            changed: now,
        }
    }

    pub(crate) fn value(&self) -> u32 {
        self.value
    }

    /// Two threads may come in the other order than they read the clock: the earlier moment counts as
    /// the later one.
    pub(crate) fn set(&mut self, value: u32, now: MonoTime) {
        self.integral += f64::from(self.value) * now.saturating_since(self.changed).as_secs_f64();
        self.changed = self.changed.max(now);
        self.value = value;
    }

    /// The mean since `began`; starts the next stretch.
    pub(crate) fn take(&mut self, began: MonoTime, now: MonoTime) -> f64 {
        self.set(self.value, now);
        let seconds = now.saturating_since(began).as_secs_f64();
        let integral = std::mem::take(&mut self.integral);
        if seconds > 0.0 {
            integral / seconds
        } else {
            f64::from(self.value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_comes_late_is_not_counted_twice() {
        let mut gauge = Gauge::new(MonoTime::ZERO);
        gauge.set(2, MonoTime::from_millis(500));
        gauge.set(1, MonoTime::from_millis(400));
        let mean = gauge.take(MonoTime::ZERO, MonoTime::from_millis(1000));
        assert!((mean - 0.5).abs() < 1e-9, "{mean}");
    }
}
