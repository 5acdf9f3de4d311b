//! Spans of time as people write them: `50ms`, `10s`, `1.5min`, `2h`, `1d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time with its unit written beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Longest first where one unit ends like another.
const UNITS: [(&str, f64); 6] = [
    ("us", 1e-6),
    ("ms", 1e-3),
    ("min", 60.0),
    ("s", 1.0),
    ("h", 3600.0),
    ("d", 86_400.0),
];

/// Nothing in a simulation lasts longer: ten years.
const LONGEST_S: f64 = 10.0 * 366.0 * 86_400.0;

/// A text that is no span of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a span of time: expected a number with a unit (us, ms, s, min, h, d), such as \"50ms\" or \"10s\""
)]
pub struct InvalidSpan {
    pub text: String,
}

impl Span {
    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl FromStr for Span {
    type Err = InvalidSpan;
    fn from_str(text: &str) -> Result<Self, InvalidSpan> {
        let invalid = || InvalidSpan {
            text: text.chars().take(80).collect(),
        };
        let trimmed = text.trim();
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((trimmed.strip_suffix(unit)?, *factor)))
            .ok_or_else(invalid)?;
        let value: f64 = number.trim().parse().map_err(|_| invalid())?;
        let seconds = value * factor;
        if (0.0..=LONGEST_S).contains(&seconds) {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds();
        let (unit, factor) = match seconds {
            s if s < 1.0 => ("ms", 1e-3),
            s if s >= 3600.0 && s % 3600.0 == 0.0 => ("h", 3600.0),
            s if s >= 60.0 && s % 60.0 == 0.0 => ("min", 60.0),
            _ => ("s", 1.0),
        };
        write!(f, "{}{unit}", (seconds / factor * 1e6).round() / 1e6)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_are_read_and_written_with_their_unit() {
        for (text, seconds) in [
            ("50ms", 0.05),
            ("10s", 10.0),
            ("1.5min", 90.0),
            ("2h", 7200.0),
            ("1d", 86_400.0),
            ("250us", 0.000_25),
        ] {
            let span: Span = text.parse().expect("a span");
            assert_eq!(span.seconds(), seconds, "{text}");
            assert_eq!(span.to_string().parse(), Ok(span), "{text}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused_with_what_was_expected() {
        for bad in ["", "10", "s", "-1s", "NaNs", "infs", "1e300d"] {
            let refused = bad.parse::<Span>().expect_err(bad);
            assert!(
                refused
                    .to_string()
                    .contains("expected a number with a unit")
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,16}") {
            let _ = text.parse::<Span>();
        }
    }
}
