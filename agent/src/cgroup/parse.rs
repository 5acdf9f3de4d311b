//! The text forms of the kernel's group files. Pure: a form that is not the expected one is `None`.

/// A file that holds one number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The value behind `key` in lines of `key value`.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

/// v1's `blkio.throttle.io_service_bytes`: lines of `MAJOR:MINOR Operation bytes`. `Total 0` alone is
/// no reading: since Linux 6.10 nothing is counted there before somebody sets a limit.
pub(super) fn blkio_sum(text: &str, operation: &str) -> Option<u64> {
    let mut sum = None;
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(what), Some(bytes)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if device.contains(':') && what == operation {
            sum = Some(sum.unwrap_or(0) + bytes.trim().parse::<u64>().ok()?);
        }
    }
    sum
}

/// v2's `io.stat`: lines of `MAJOR:MINOR rbytes=N wbytes=N ...`; an empty file is a group that has
/// not read or written yet.
pub(super) fn io_stat_sum(text: &str, key: &str) -> Option<u64> {
    let mut sum = 0u64;
    for line in text.lines() {
        for field in line.split(' ').skip(1) {
            if let Some(bytes) = field
                .strip_prefix(key)
                .and_then(|rest| rest.strip_prefix('='))
            {
                sum = sum.saturating_add(bytes.parse().ok()?);
            }
        }
    }
    Some(sum)
}

/// The share of the last 10 s in which some task waited, from `some avg10=12.34 ...`.
pub(super) fn pressure_some(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some
        .split(' ')
        .find_map(|field| field.strip_prefix("avg10="))?;
    let percent: f64 = average.parse().ok()?;
    percent.is_finite().then_some(percent / 100.0)
}

/// v2 writes `max` where there is no limit.
pub(super) fn limit(text: &str) -> Option<u64> {
    number(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_whole_words() {
        let text = "nr_throttled 4\nnr_throttled_time 9\noom_kill_disable 0\noom_kill 2\n";
        assert_eq!(value_of(text, "nr_throttled"), Some(4));
        assert_eq!(value_of(text, "oom_kill"), Some(2));
        assert_eq!(value_of(text, "missing"), None);
    }

    #[test]
    fn a_v2_group_without_io_has_read_nothing_but_v1_does_not_say() {
        assert_eq!(io_stat_sum("", "rbytes"), Some(0));
        assert_eq!(blkio_sum("Total 0\n", "Read"), None);
        let text = "8:0 Read 4096\n8:0 Write 0\n8:16 Read 4\nTotal 4100\n";
        assert_eq!(blkio_sum(text, "Read"), Some(4100));
    }

    #[test]
    fn no_limit_is_no_number() {
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("1024\n"), Some(1024));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[ -~\n]{0,200}") {
            let _ = (number(&text), value_of(&text, "a"), blkio_sum(&text, "Read"));
            let _ = (io_stat_sum(&text, "rbytes"), pressure_some(&text), limit(&text));
        }
    }
}
