//! One second of a replica, from two readings of its control group. Pure.

use std::time::Duration;

use shared::report::ReplicaSample;

use super::host::per_second;
use crate::cgroup::Reading;

pub fn sample(before: Option<&Reading>, after: &Reading, over: Duration) -> ReplicaSample {
    let delta = |field: fn(&Reading) -> Option<u64>| {
        let (before, after) = (before.and_then(field)?, field(after)?);
        after.checked_sub(before)
    };
    let cpu_cores = before
        .and_then(|before| before.cpu_used)
        .zip(after.cpu_used)
        .and_then(|(before, after)| after.checked_sub(before))
        .filter(|_| !over.is_zero())
        .map(|used| used.as_secs_f64() / over.as_secs_f64());
    let periods = delta(|r| r.cpu_periods);
    let throttled = delta(|r| r.cpu_periods_throttled);
    ReplicaSample {
        cpu_cores,
        throttled: throttled_share(periods, throttled),
        memory_bytes: after.memory_bytes,
        memory_limit_bytes: after.memory_limit_bytes,
        io_read_bytes: delta(|r| r.io_read_bytes).and_then(|bytes| per_second(bytes, over)),
        io_written_bytes: delta(|r| r.io_written_bytes).and_then(|bytes| per_second(bytes, over)),
        pids: after.pids,
        pressure_cpu: after.pressure_cpu,
        pressure_memory: after.pressure_memory,
        pressure_io: after.pressure_io,
        absent: after.absent.clone(),
    }
}

/// A replica that did nothing has no periods, and was not held back in any.
fn throttled_share(periods: Option<u64>, throttled: Option<u64>) -> Option<f64> {
    match (periods?, throttled?) {
        (0, _) => Some(0.0),
        (periods, throttled) => Some(throttled.min(periods) as f64 / periods as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reading_gives_what_is_but_no_rates() {
        let reading = Reading {
            cpu_used: Some(Duration::from_secs(5)),
            memory_bytes: Some(100),
            ..Reading::default()
        };
        let first = sample(None, &reading, Duration::from_secs(1));
        assert_eq!((first.cpu_cores, first.memory_bytes), (None, Some(100)));
    }

    #[test]
    fn rates_are_per_second_of_the_stretch_between() {
        let reading = |ms, periods, throttled, read| Reading {
            cpu_used: Some(Duration::from_millis(ms)),
            cpu_periods: Some(periods),
            cpu_periods_throttled: Some(throttled),
            io_read_bytes: Some(read),
            ..Reading::default()
        };
        let over = Duration::from_secs(2);
        let got = sample(
            Some(&reading(1000, 10, 1, 0)),
            &reading(2000, 30, 6, 4096),
            over,
        );
        assert_eq!(got.cpu_cores, Some(0.5));
        assert_eq!(got.throttled, Some(0.25));
        assert_eq!(got.io_read_bytes, Some(2048));
    }

    #[test]
    fn a_new_group_under_the_same_name_gives_no_negative_rates() {
        let reading = |seconds| Reading {
            cpu_used: Some(Duration::from_secs(seconds)),
            ..Reading::default()
        };
        let got = sample(Some(&reading(9)), &reading(1), Duration::from_secs(1));
        assert_eq!(got.cpu_cores, None);
    }
}
