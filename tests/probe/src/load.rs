//! The work a request makes: time, CPU and memory.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::settings::Settings;

/// Flat up to the knee, then growing with the concurrency, as a saturated model's does.
pub(crate) fn service_time(settings: &Settings, concurrency: u32) -> Duration {
    let flat = Duration::from_millis(settings.service_ms);
    match settings.knee {
        0 => flat,
        knee if concurrency <= knee => flat,
        knee => flat.mul_f64(f64::from(concurrency) / f64::from(knee)),
    }
}

/// Burns CPU time, not wall time: a CPU limit or a busy machine stretches it, as it would a model's.
pub(crate) async fn burn(cpu: Duration) {
    if cpu.is_zero() {
        return;
    }
    let burning = tokio::task::spawn_blocking(move || {
        let started = thread_cpu_time();
        while thread_cpu_time().saturating_sub(started) < cpu {
            std::hint::black_box((0..2000_u32).fold(1, |seed: u32, n| seed.wrapping_mul(31) ^ n));
        }
    });
    let _ = burning.await; // it can't panic; it is cancelled only when the runtime ends
}

fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::MAX, Duration::from)
}

/// Memory, touched. `None`: the kernel refuses.
pub(crate) async fn allocate(mib: usize) -> Option<Vec<u8>> {
    if mib == 0 {
        return Some(Vec::new());
    }
    let bytes = mib.checked_mul(1 << 20)?;
    let touching = tokio::task::spawn_blocking(move || {
        let mut memory = Vec::new();
        memory.try_reserve_exact(bytes).ok()?;
        memory.resize(bytes, 1);
        Some(memory)
    });
    touching.await.ok().flatten()
}

/// Lines of text, as a model prints at its start.
pub(crate) fn log(bytes: u64, mut out: impl std::io::Write) -> std::io::Result<()> {
    const LINE: &[u8] =
        b"the probe is starting and has nothing else to say than this line of text\n";
    let mut left = bytes;
    while left > 0 {
        let len = left.min(LINE.len() as u64) as usize;
        out.write_all(&LINE[LINE.len() - len..])?;
        left -= len as u64;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_time_is_flat_up_to_the_knee_and_linear_beyond() {
        let settings = Settings {
            service_ms: 10,
            knee: 4,
            ..Settings::default()
        };
        let millis = |concurrency| service_time(&settings, concurrency).as_millis();
        assert_eq!([1, 4, 6, 8, 40].map(millis), [10, 10, 15, 20, 100]);
        let flat = Settings {
            knee: 0,
            ..settings.clone()
        };
        assert_eq!(service_time(&flat, 1000).as_millis(), 10);
    }

    #[test]
    fn beyond_the_knee_more_requests_at_once_answer_no_more_of_them_each_second() {
        let settings = Settings {
            service_ms: 50,
            knee: 6,
            ..Settings::default()
        };
        let per_second =
            |at_once: u32| f64::from(at_once) / service_time(&settings, at_once).as_secs_f64();
        assert_eq!([3, 6].map(per_second), [60.0, 120.0]);
        for at_once in [7, 12, 100] {
            assert!((per_second(at_once) - 120.0).abs() < 1e-3, "{at_once}");
        }
    }

    #[tokio::test]
    async fn burning_takes_cpu_time() {
        let started = std::time::Instant::now();
        burn(Duration::from_millis(20)).await;
        assert!(started.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn the_log_has_the_length_asked_for_and_ends_a_line() {
        let mut out = Vec::new();
        log(1000, &mut out).unwrap();
        assert_eq!((out.len(), out.last()), (1000, Some(&b'\n')));
    }
}
