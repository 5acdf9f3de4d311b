//! One line of a log file: `{"t":"2026-01-31T23:59:59.123Z","s":"stdout","m":"text"}`.
//!
//! `t` is when the line was read, UTC; `s` is `stdout`, `stderr`, or `shim` for what the logger itself has
//! to say; bytes that are not UTF-8 show as U+FFFD. `"partial":true` says that the line goes on in the
//! stream's next record. Pure.

use std::borrow::Cow;
use std::time::Duration;

use crate::lines::Piece;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
    Shim,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Shim => "shim",
        }
    }
}

/// Appends a record. `now` counts from 1970.
pub(crate) fn append(out: &mut Vec<u8>, now: Duration, source: Source, piece: &Piece<'_>) {
    out.extend_from_slice(b"{\"t\":\"");
    out.extend_from_slice(&timestamp(now));
    out.extend_from_slice(b"\",\"s\":\"");
    out.extend_from_slice(source.name().as_bytes());
    out.extend_from_slice(b"\",\"m\":");
    let text: Cow<'_, str> = String::from_utf8_lossy(piece.bytes);
    serde_json::to_writer(&mut *out, text.as_ref())
        .expect("a string always becomes JSON, in memory");
    if piece.partial {
        out.extend_from_slice(b",\"partial\":true");
    }
    out.extend_from_slice(b"}\n");
}

/// RFC 3339 with milliseconds. Years past 9999 wrap: such a clock is wrong anyway.
fn timestamp(now: Duration) -> [u8; 24] {
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let seconds = now.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let second = seconds % 86_400;
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], second / 3600);
    digits(&mut text[14..16], second / 60 % 60);
    digits(&mut text[17..19], second % 60);
    digits(&mut text[20..23], u64::from(now.subsec_millis()));
    text
}

fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of the Gregorian calendar, days counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // Years that begin on 1 March put the leap day last: Hinnant's days-from-civil, backwards.
    let days = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, millis: u64) -> String {
        let now = Duration::from_millis(seconds * 1000 + millis);
        String::from_utf8(timestamp(now).to_vec()).unwrap()
    }

    #[test]
    fn timestamps_agree_with_the_calendar() {
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 7), "2000-02-28T23:59:59.007Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_767_225_599, 999), "2025-12-31T23:59:59.999Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_record_is_one_line_of_json_whatever_the_bytes() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        append(
            &mut out,
            Duration::ZERO,
            Source::Stderr,
            &Piece {
                bytes: &bytes,
                partial: true,
            },
        );
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let record: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let want = serde_json::json!({
            "t": "1970-01-01T00:00:00.000Z",
            "s": "stderr",
            "m": String::from_utf8_lossy(&bytes),
            "partial": true,
        });
        assert_eq!(record, want);
    }
}
