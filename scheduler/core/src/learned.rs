//! What was learned of a set, as the store keeps it: `learned/ENDPOINT-ID/ENTITY/GENERATION`.
//!
//! A restart goes on with it. It is worth little beside what was asked for: a record that is not
//! understood (a later version's) is dropped, one that grew too large is written without its larger
//! part, and writes are few: what changed at most every 30 s a set, and what only grew more certain
//! at most every 5 min, together with other writes where there are some.

use std::collections::BTreeMap;
use std::time::Duration;

use apa::Autoscaler;
use apa::startup::StartupTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::units::MonoTime;

use crate::core::Core;
use crate::records::VERSION;
use crate::set::{ReplicaSet, SetId};
use crate::settings::Settings;
use crate::store_op::{Entries, Op};

pub(crate) const PREFIX: &str = "learned/";
/// Between two writes of a set whose target or start-up time changed.
const CHANGED_SPACING: Duration = Duration::from_secs(30);
/// Between two writes of a set that decided nothing new.
const REFRESH_SPACING: Duration = Duration::from_secs(300);
/// How much longer such a write waits for another one to ride along with.
const RIDE_WAIT: Duration = Duration::from_secs(5);
/// Records of one pass: a restart of a large fleet must not fill a commit with what can wait.
const WRITES_PER_PASS: usize = 32;

#[derive(Serialize, Deserialize)]
struct LearnedRecord {
    v: u32,
    startup: StartupTime,
    /// Where the axes' own state is missing, the first guess.
    prior: Option<u32>,
    /// In the form of the version that wrote it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    axes: Value,
}

/// What was read of one set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learned {
    pub startup: StartupTime,
    pub prior: Option<u32>,
    pub scaler: Option<Autoscaler>,
}

/// How a set's record in the store stands to the set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stored {
    exists: bool,
    /// By this process.
    written: Option<MonoTime>,
    /// A target or a start-up time is another one.
    changed: bool,
    /// A decision was made from new measurements.
    refreshed: bool,
}

impl Stored {
    pub(crate) fn read() -> Self {
        Self {
            exists: true,
            ..Self::default()
        }
    }

    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    pub(crate) fn refreshed(&mut self) {
        self.refreshed = true;
    }

    /// `rides`: something else is written anyway.
    fn due(&self, rides: bool, now: MonoTime) -> bool {
        if !self.changed && !self.refreshed {
            return false;
        }
        let Some(written) = self.written else {
            return self.changed;
        };
        let age = now.saturating_since(written);
        let wait = if rides { Duration::ZERO } else { RIDE_WAIT };
        (self.changed && age >= CHANGED_SPACING) || age >= REFRESH_SPACING + wait
    }

    fn written(&mut self, now: MonoTime) {
        *self = Self {
            exists: true,
            written: Some(now),
            changed: false,
            refreshed: false,
        };
    }
}

/// All that the store holds, by key; what is not understood is only a key.
pub(crate) fn restore(entries: &Entries) -> BTreeMap<String, Option<Learned>> {
    let from = entries.range(PREFIX.to_owned()..);
    let records = from.take_while(|(key, _)| key.starts_with(PREFIX));
    records
        .map(|(key, value)| (key.clone(), parse(value)))
        .collect()
}

fn parse(value: &[u8]) -> Option<Learned> {
    let record: LearnedRecord = serde_json::from_slice(value).ok()?;
    (record.v == VERSION).then(|| Learned {
        startup: record.startup,
        prior: record.prior,
        scaler: serde_json::from_value(record.axes).ok(),
    })
}

pub(crate) fn key(id: &SetId) -> String {
    let SetId {
        endpoint,
        entity,
        generation,
    } = id;
    format!("{PREFIX}{endpoint}/{entity}/{generation}")
}

impl ReplicaSet {
    fn learned(&self, key: String, settings: &Settings, now: MonoTime) -> Option<Op> {
        // As a restart would take it up: without seconds that mean nothing to another process, and
        // which are most of it.
        let kept = self.policy(settings).and_then(|policy| {
            let scaler = self.axes.scaler()?.clone();
            Some(scaler.resume(&policy, self.axes.desired(), now))
        });
        let record = LearnedRecord {
            v: VERSION,
            startup: self.startup,
            prior: self.axes.learned().or(self.axes.prior()),
            axes: kept
                .and_then(|kept| serde_json::to_value(kept).ok())
                .unwrap_or_default(),
        };
        let whole = Op::put(key.clone(), &record);
        let small = LearnedRecord {
            axes: Value::Null,
            ..record
        };
        // Numbers and nothing else: this one fits.
        whole.or_else(|_| Op::put(key, &small)).ok()
    }
}

impl Core {
    /// Records of sets that are due.
    pub(crate) fn take_learned(&mut self, rides: bool, now: MonoTime) -> Vec<Op> {
        let mut writes = Vec::new();
        let settings = &self.settings;
        let due = self.sets.iter_mut();
        let due = due.filter(|(_, set)| set.stored.due(rides, now));
        for (id, set) in due.take(WRITES_PER_PASS) {
            writes.extend(set.learned(key(id), settings, now));
            set.stored.written(now);
        }
        writes
    }

    /// Takes sets that nobody asks for out of memory and out of the store.
    pub(crate) fn forget_unwanted_sets(&mut self) {
        let forgotten = &mut self.unwritten.forgotten;
        self.sets.retain(|id, set| {
            let wanted = set.entity().is_some() || !set.members.is_empty();
            if !wanted && set.stored.exists {
                forgotten.insert(key(id));
            }
            wanted
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime::from_secs(seconds)
    }

    #[test]
    fn a_change_is_written_at_most_every_half_minute_and_what_can_wait_rides_along() {
        let mut stored = Stored::default();
        assert!(!stored.due(true, at(0)), "nothing is known yet");
        stored.changed();
        assert!(stored.due(false, at(1)), "the first one");
        stored.written(at(1));
        stored.changed();
        assert!(!stored.due(true, at(30)));
        assert!(stored.due(false, at(31)));
        stored.written(at(36));
        assert!(!stored.due(true, at(900)), "it is as it was");
        stored.refreshed();
        assert!(!stored.due(true, at(335)));
        assert!(stored.due(true, at(336)));
        assert!(!stored.due(false, at(336)), "another write may come");
        assert!(stored.due(false, at(341)));
    }

    #[test]
    fn what_another_version_wrote_is_dropped_and_its_foreign_axes_are_left_out() {
        assert!(parse(br#"{"v":9}"#).is_none());
        assert!(parse(b"{").is_none());
        let foreign = br#"{"v":1,"startup":{"seconds":12.0},"prior":9,"axes":{"of":"later"}}"#;
        let learned = parse(foreign).expect("understood but for its axes");
        assert_eq!(learned.startup.get(), Some(Duration::from_secs(12)));
        assert_eq!((learned.prior, learned.scaler), (Some(9), None));
    }
}
