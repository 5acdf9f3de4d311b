//! Moments as logs write them, in microseconds since 1970 (UTC).

/// Microseconds since 1970-01-01T00:00:00Z.
pub(super) type Micros = i64;

pub(super) const SECOND: Micros = 1_000_000;

/// From here on a bare number cannot be seconds (the year 5138): it is milliseconds.
const MILLIS_FROM: f64 = 1e11;
/// Nothing was logged later than this: the year 9999, in seconds.
const LATEST_S: f64 = 253_402_300_800.0;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// `2024-05-01T10:00:00.5Z`, `2024-05-01 10:00:00+02:00`; without an offset it is UTC.
pub(super) fn rfc3339(text: &str) -> Option<Micros> {
    let text = text.trim();
    let (date, time) = (text.get(..10)?, text.get(11..)?);
    if !matches!(text.as_bytes()[10], b'T' | b't' | b' ') {
        return None;
    }
    let mut date = date.split('-');
    let (year, month, day) = (
        digits(date.next()?, 4)?,
        digits(date.next()?, 2)?,
        digits(date.next()?, 2)?,
    );
    let zone = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (time, zone) = time.split_at(zone);
    let offset_s = match zone {
        "" | "Z" | "z" => 0,
        zone => offset(zone)?,
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    Some(moment(year, month, day, whole)? + micros(fraction)? - offset_s * SECOND)
}

/// `10/Oct/2000:13:55:36 -0700`, as web servers write it.
pub(super) fn combined(text: &str) -> Option<Micros> {
    let (date, rest) = text.split_once(':')?;
    let (time, zone) = rest.split_once(' ')?;
    let mut date = date.split('/');
    let day = digits(date.next()?, 2)?;
    let name = date.next()?;
    let month = MONTHS.iter().position(|known| *known == name)? as i64 + 1;
    let year = digits(date.next()?, 4)?;
    Some(moment(year, month, day, time)? - offset(zone)? * SECOND)
}

/// Seconds since 1970, or milliseconds where seconds would lie beyond the year 5138.
pub(super) fn unix(number: f64) -> Option<Micros> {
    let seconds = if number.abs() >= MILLIS_FROM {
        number / 1000.0
    } else {
        number
    };
    (0.0..LATEST_S)
        .contains(&seconds)
        .then(|| (seconds * 1e6).round() as Micros)
}

fn digits(text: &str, count: usize) -> Option<i64> {
    let plain = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok())?
}

fn micros(fraction: &str) -> Option<Micros> {
    if fraction.len() > 18 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let six: String = fraction.chars().chain("000000".chars()).take(6).collect();
    six.parse().ok()
}

/// `+02:00` or `+0200`, in seconds.
fn offset(text: &str) -> Option<i64> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let (hours, minutes) = match rest.split_once(':') {
        Some(parts) => parts,
        None => (rest.get(..2)?, rest.get(2..)?),
    };
    let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn moment(year: i64, month: i64, day: i64, time: &str) -> Option<Micros> {
    let mut time = time.split(':');
    let hour = digits(time.next()?, 2)?;
    let minute = digits(time.next()?, 2)?;
    let second = digits(time.next()?, 2)?;
    // 60 is a leap second.
    let sound = time.next().is_none() && hour < 24 && minute < 60 && second <= 60;
    let days = days_since_1970(year, month, day)?;
    sound.then_some((((days * 24 + hour) * 60 + minute) * 60 + second) * SECOND)
}

/// The Gregorian calendar's days, years counted from March so that the leap day is last.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719468 days lie between the first of March of year 0 and 1970.
    Some(year * 365 + leap_days + day_of_year - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_moment_is_read_from_every_way_it_is_written() {
        // `date -u -d 2000-10-10T20:55:36Z +%s`
        let expected = Some(971_211_336 * SECOND);
        assert_eq!(rfc3339("2000-10-10T20:55:36Z"), expected);
        assert_eq!(rfc3339("2000-10-10 20:55:36"), expected);
        assert_eq!(rfc3339("2000-10-10T13:55:36-07:00"), expected);
        assert_eq!(combined("10/Oct/2000:13:55:36 -0700"), expected);
        assert_eq!(unix(971_211_336.0), expected);
        assert_eq!(unix(971_211_336_000.0), expected);
    }

    #[test]
    fn fractions_are_read_to_the_microsecond_and_leap_days_count() {
        let whole = rfc3339("2024-02-29T00:00:00Z").expect("a leap day");
        assert_eq!(
            rfc3339("2024-02-29T00:00:00.1234567Z"),
            Some(whole + 123_456)
        );
        assert_eq!(
            rfc3339("2024-03-01T00:00:00Z"),
            Some(whole + 86_400 * SECOND)
        );
        assert_eq!(rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(rfc3339("2023-02-29T00:00:00Z"), None);
    }

    #[test]
    fn what_is_no_moment_is_none() {
        for bad in [
            "",
            "today",
            "2024-13-01T00:00:00Z",
            "2024-01-32T00:00:00Z",
            "2024-01-01T25:00:00Z",
            "2024-01-01",
            "2024-01-01T00:00:00+99:00",
            "2024-01-01é00:00:00Z",
        ] {
            assert_eq!(rfc3339(bad), None, "{bad}");
        }
        assert_eq!(combined("10/Okt/2000:13:55:36 -0700"), None);
        assert_eq!(unix(-1.0), None);
        assert_eq!(unix(f64::NAN), None);
    }
}
