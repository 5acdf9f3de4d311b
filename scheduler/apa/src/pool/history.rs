//! A week of claims by the minute. Pure.

use std::collections::VecDeque;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Seven days, the minutes before the same time of day, and the longest lead time.
const KEPT_MINUTES: usize = (7 * 24 + 2) * 60;

/// Claims of each minute up to the last one; `None` where nothing is known of it. At most
/// [`KEPT_MINUTES`], which is 80 KiB; written down as runs, which is a few KiB.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    /// Oldest first; the last is of `last`.
    claims: VecDeque<Option<u32>>,
    last: Option<u64>,
}

/// As it is written down: runs of the same value.
#[derive(Serialize, Deserialize)]
struct Written {
    last: Option<u64>,
    runs: Vec<(u32, Option<u32>)>,
}

impl History {
    /// Whether this minute lies after all that were recorded.
    pub(super) fn is_new(&self, minute: u64) -> bool {
        self.last.is_none_or(|last| minute > last)
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }

    /// Minutes that were left out since the last one are gaps.
    pub(super) fn record(&mut self, minute: u64, claims: u32) {
        if let Some(last) = self.last {
            self.skip(minute.saturating_sub(last).saturating_sub(1));
        }
        self.push(Some(claims));
        self.last = Some(minute);
    }

    /// Claims in the `lead` minutes up to and with this one; `None` where one of them is not known.
    pub(super) fn lead_demand(&self, minute: u64, lead: u64) -> Option<u32> {
        let first = (minute + 1).checked_sub(lead)?;
        (first..=minute).try_fold(0_u32, |sum, minute| {
            Some(sum.saturating_add(self.claims_of(minute)?))
        })
    }

    fn claims_of(&self, minute: u64) -> Option<u32> {
        let back = usize::try_from(self.last?.checked_sub(minute)?).ok()?;
        let at = self.claims.len().checked_sub(back + 1)?;
        *self.claims.get(at)?
    }

    fn skip(&mut self, minutes: u64) {
        for _ in 0..minutes.min(KEPT_MINUTES as u64) {
            self.push(None);
        }
    }

    fn push(&mut self, claims: Option<u32>) {
        while self.claims.len() >= KEPT_MINUTES {
            self.claims.pop_front();
        }
        self.claims.push_back(claims);
    }
}

impl Serialize for History {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut runs: Vec<(u32, Option<u32>)> = Vec::new();
        for claims in &self.claims {
            match runs.last_mut() {
                Some((length, value)) if value == claims => *length += 1,
                _ => runs.push((1, *claims)),
            }
        }
        Written {
            last: self.last,
            runs,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for History {
    /// More than is ever kept is cut, whatever was written.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer)?;
        let mut history = Self::default();
        for (length, claims) in written.runs {
            for _ in 0..(length as usize).min(KEPT_MINUTES) {
                history.push(claims);
            }
        }
        history.last = written.last;
        Ok(history)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_no_zero_and_what_lies_in_it_is_not_known() {
        let mut history = History::default();
        history.record(5, 2);
        history.record(8, 1);
        assert_eq!(history.lead_demand(5, 1), Some(2));
        assert_eq!(history.lead_demand(7, 1), None);
        assert_eq!(history.lead_demand(8, 1), Some(1));
        assert_eq!(history.lead_demand(8, 2), None);
        assert!(!history.is_new(8) && history.is_new(9));
    }

    #[test]
    fn a_month_takes_no_more_memory_than_a_week_and_survives_being_written_down() {
        let mut history = History::default();
        for minute in 0..30 * 24 * 60 {
            history.record(minute, u32::from(minute % 97 == 0));
        }
        assert_eq!(history.claims.len(), KEPT_MINUTES);
        let text = serde_json::to_string(&history).expect("JSON");
        assert!(text.len() < 5_000, "{}", text.len());
        assert_eq!(
            serde_json::from_str::<History>(&text).expect("read"),
            history
        );
    }

    #[test]
    fn runs_that_are_too_long_are_cut_when_they_are_read() {
        let text = r#"{"last":9,"runs":[[4294967295,3],[4294967295,null]]}"#;
        let history: History = serde_json::from_str(text).expect("read");
        assert_eq!(history.claims.len(), KEPT_MINUTES);
    }
}
