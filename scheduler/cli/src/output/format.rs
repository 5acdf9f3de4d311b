//! Numbers for people. `-` stands for what is not known.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) const UNKNOWN: &str = "-";

/// `45s`, `3m12s`, `4h05m`, `12d`.
pub(crate) fn age(age: Duration) -> String {
    let s = age.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..600 => format!("{}m{:02}s", s / 60, s % 60),
        600..3600 => format!("{}m", s / 60),
        3600..36_000 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        36_000..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

/// Seconds as a server sends them; a value that is none shows as unknown.
pub(crate) fn seconds(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| UNKNOWN.into(), age)
}

/// `0.8 s`, `3.2 s`, `75 s`, `4m10s`: how long something took.
pub(crate) fn took(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else if seconds < 100.0 {
        format!("{seconds:.0} s")
    } else {
        age(took)
    }
}

/// How long ago a Unix time was; a clock that is behind the server's shows zero.
pub(crate) fn since_unix_ms(unix_ms: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    age(now.saturating_sub(Duration::from_millis(unix_ms)))
}

/// How long until a Unix time.
pub(crate) fn until_unix(unix: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    match Duration::from_secs(unix).checked_sub(now) {
        Some(left) => format!("in {}", age(left)),
        None => "expired".into(),
    }
}

/// A ratio of 0 to 1 as `12 %`.
pub(crate) fn percent(ratio: Option<f64>) -> String {
    match ratio {
        Some(ratio) if ratio.is_finite() => format!("{:.0} %", ratio * 100.0),
        Some(_) | None => UNKNOWN.into(),
    }
}

/// `1.5 GiB`.
pub(crate) fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| UNKNOWN.into(), |n| shared::units::Bytes(n).to_string())
}

/// Thousandths of a core as `1.5`.
pub(crate) fn cores(millis: u32) -> String {
    let text = format!("{:.3}", f64::from(millis) / 1000.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `1 replica`, `2 replicas`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

/// The first digits of an id, enough for people.
pub(crate) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_keeps_two_units_at_most() {
        let shown: Vec<String> = [0, 59, 60, 192, 601, 3600, 14_700, 36_000, 172_800]
            .map(|s| age(Duration::from_secs(s)))
            .to_vec();
        assert_eq!(
            shown,
            [
                "0s", "59s", "1m00s", "3m12s", "10m", "1h00m", "4h05m", "10h", "2d"
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_never_zero() {
        assert_eq!(percent(None), "-");
        assert_eq!(percent(Some(f64::NAN)), "-");
        assert_eq!(percent(Some(0.0)), "0 %");
        assert_eq!(percent(Some(0.126)), "13 %");
        assert_eq!(bytes(None), "-");
        assert_eq!(seconds(f64::NAN), "-");
        assert_eq!(seconds(-1.0), "-");
    }

    #[test]
    fn cores_lose_their_trailing_zeros() {
        assert_eq!(
            [0, 500, 1000, 1500, 2250].map(cores),
            ["0", "0.5", "1", "1.5", "2.25"]
        );
    }

    #[test]
    fn times_of_a_server_whose_clock_is_ahead_are_now() {
        let now = UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(since_unix_ms(200_000, now), "0s");
        assert_eq!(since_unix_ms(40_000, now), "1m00s");
        assert_eq!(until_unix(160, now), "in 1m00s");
        assert_eq!(until_unix(99, now), "expired");
    }
}
