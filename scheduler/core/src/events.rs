//! What happened: a bounded log, and what of it the store does not have yet.
//!
//! What always holds: at most [`MAX_EVENTS`] are kept, of them at most [`MAX_OF_ENDPOINT`] of one
//! endpoint, the newest ones; each has a sequence number that no other event ever had, and a greater
//! one happened later. What happens again is one event that counts: it moves to the end with a new
//! number. Nobody is shown an event that the store does not have, so that no number is shown twice
//! across a crash.
//!
//! Events ride along with the commits of what caused them, else they wait for up to a second; at most
//! [`WRITES_PER_PERIOD`] records are written in each.

pub(crate) mod blocked;
pub mod draft;
pub(crate) mod endpoints;
pub(crate) mod nodes;
pub mod recorded;
mod replicas;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::api::events::{EventInfo, Missed, Severity};
use shared::ids::{EndpointName, NodeName};
use shared::units::MonoTime;

use crate::store_op::{Entries, Op, records};
pub use draft::Draft;

pub const MAX_EVENTS: usize = 1000;
pub const MAX_OF_ENDPOINT: usize = 100;
/// What comes back later than this is told as a new event.
const AGAIN_WITHIN_MS: u64 = 3_600_000;
const WRITE_PERIOD: Duration = Duration::from_millis(900);
/// With as many deletions it stays within one commit.
const WRITES_PER_PERIOD: usize = 48;
const MAX_TEXT_BYTES: usize = 600;

/// Of the keys of its records in the store.
pub const PREFIX: &str = "event/";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    v: u32,
    event: EventInfo,
}

/// Which events somebody asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub endpoint: Option<EndpointName>,
    pub node: Option<NodeName>,
    pub warnings_only: bool,
    /// Those of this time or later, Unix milliseconds.
    pub from_unix_ms: u64,
}

/// Some events, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub events: Vec<EventInfo>,
    /// Everything up to here that the filter lets through is in `events`, or was missed.
    pub up_to: u64,
    pub missed: Option<Missed>,
}

#[derive(Clone, Debug, Default)]
pub struct Log {
    /// By sequence number.
    events: BTreeMap<u64, EventInfo>,
    by_endpoint: BTreeMap<EndpointName, BTreeSet<u64>>,
    /// The last number given out.
    last: u64,
    /// The greatest number of an event that was dropped for room.
    dropped: u64,
    unwritten: BTreeSet<u64>,
    /// Records of the store whose events have moved on or were dropped.
    stale: BTreeSet<String>,
    /// When the running period of writes ends, and how many it has seen.
    period_end: Option<MonoTime>,
    written_in_period: usize,
}

impl Filter {
    fn admits(&self, event: &EventInfo) -> bool {
        let subject = &event.subject;
        (self.endpoint.is_none() || self.endpoint == subject.endpoint)
            && (self.node.is_none() || self.node == subject.node)
            && (!self.warnings_only || event.severity == Severity::Warning)
            && event.unix_ms >= self.from_unix_ms
    }
}

impl Log {
    /// History never stops a scheduler: a record that is not understood is dropped.
    pub(crate) fn restore(entries: &Entries) -> Self {
        let mut log = Self::default();
        for (key, _) in entries
            .range(PREFIX.to_owned()..)
            .take_while(|(key, _)| key.starts_with(PREFIX))
        {
            log.stale.insert(key.clone());
        }
        for (rest, record) in records::<Record>(entries, PREFIX).flatten() {
            let Record { v, event } = record;
            if v == VERSION && key(event.seq) == format!("{PREFIX}{rest}") {
                log.stale.remove(&key(event.seq));
                log.last = log.last.max(event.seq);
                log.insert(event);
            }
        }
        log.drop_surplus();
        // What is missing below the oldest may have been dropped.
        let oldest = log.events.keys().next();
        log.dropped = oldest.map_or(log.last, |oldest| oldest - 1);
        log
    }

    /// Takes in what happened.
    pub(crate) fn record(&mut self, draft: Draft, unix_ms: u64) {
        self.last += 1;
        let before = self.same_again(&draft, unix_ms);
        let (first_unix_ms, count) = match before.and_then(|seq| self.take_out(seq)) {
            Some(before) => (before.first_unix_ms, before.count.saturating_add(1)),
            None => (unix_ms, 1),
        };
        let Draft {
            kind,
            severity,
            subject,
            message,
            cause,
            exit,
            scale,
            ..
        } = draft;
        let event = EventInfo {
            seq: self.last,
            unix_ms,
            first_unix_ms,
            count,
            severity,
            kind,
            subject,
            message: shortened(message),
            cause: shortened(cause),
            exit,
            scale,
        };
        self.unwritten.insert(self.last);
        self.insert(event);
        self.drop_surplus();
    }

    /// The last number that may be shown: whatever was given out before it is in the store.
    pub fn last_shown(&self) -> u64 {
        self.unwritten.first().map_or(self.last, |seq| seq - 1)
    }

    /// The newest events, at most so many.
    pub fn newest(&self, filter: &Filter, limit: usize) -> Page {
        let up_to = self.last_shown();
        let shown = self.events.range(..=up_to).rev().map(|(_, event)| event);
        let mut events: Vec<EventInfo> = shown
            .filter(|event| filter.admits(event))
            .take(limit)
            .cloned()
            .collect();
        events.reverse();
        Page {
            events,
            up_to,
            missed: None,
        }
    }

    /// The oldest events after a number, at most so many.
    pub fn after(&self, seq: u64, filter: &Filter, limit: usize) -> Page {
        let last = self.last_shown();
        if seq > last {
            // A store that was restored from an older copy counts from there.
            let missed = Some(Missed {
                after_seq: seq,
                up_to_seq: last,
            });
            return Page {
                events: Vec::new(),
                up_to: last,
                missed,
            };
        }
        let mut events: Vec<EventInfo> = self
            .events
            .range((Bound::Excluded(seq), Bound::Included(last)))
            .map(|(_, event)| event)
            .filter(|event| filter.admits(event))
            .take(limit + 1)
            .cloned()
            .collect();
        let whole = events.len() <= limit;
        events.truncate(limit);
        let up_to = match events.last() {
            Some(event) if !whole => event.seq,
            // Without room for one there is no way on.
            None if !whole => seq,
            _ => last,
        };
        let missed = (self.dropped > seq).then_some(Missed {
            after_seq: seq,
            up_to_seq: self.dropped.min(last),
        });
        Page {
            events,
            up_to,
            missed,
        }
    }

    /// An endpoint's events, oldest first, shown or not.
    pub(crate) fn of_endpoint(
        &self,
        endpoint: &EndpointName,
    ) -> impl DoubleEndedIterator<Item = &EventInfo> {
        let seqs = self.by_endpoint.get(endpoint).into_iter().flatten();
        seqs.filter_map(|seq| self.events.get(seq))
    }

    /// What the store lacks, as much as may be written now. `rides`: a commit happens anyway.
    pub(crate) fn take_writes(&mut self, rides: bool, now: MonoTime) -> Vec<Op> {
        let over = self.period_end.is_none_or(|end| now >= end);
        if over {
            self.written_in_period = 0;
        } else if !rides {
            return Vec::new();
        }
        let room = WRITES_PER_PERIOD.saturating_sub(self.written_in_period);
        let seqs: Vec<u64> = self.unwritten.iter().copied().take(room).collect();
        // An event that happened again has its new record before the old one goes.
        let settled = self.unwritten.len() <= room || self.stale.len() > MAX_EVENTS;
        let stale = self.stale.iter().take(if settled { room } else { 0 });
        let stale: Vec<String> = stale.cloned().collect();
        if seqs.is_empty() && stale.is_empty() {
            return Vec::new();
        }
        if over {
            self.period_end = Some(now + WRITE_PERIOD);
        }
        self.written_in_period += seqs.len().max(stale.len());
        let mut writes = Vec::new();
        for key in stale {
            self.stale.remove(&key);
            writes.push(Op::Delete { key });
        }
        for seq in seqs {
            self.unwritten.remove(&seq);
            let Some(event) = self.events.get(&seq) else {
                continue;
            };
            let record = Record {
                v: VERSION,
                event: event.clone(),
            };
            writes.push(Op::put(key(seq), &record).expect("its texts were shortened"));
        }
        writes
    }

    /// The event that a draft repeats.
    fn same_again(&self, draft: &Draft, unix_ms: u64) -> Option<u64> {
        if !draft.counts {
            return None;
        }
        let events: Box<dyn Iterator<Item = &EventInfo>> = match &draft.subject.endpoint {
            Some(endpoint) => Box::new(self.of_endpoint(endpoint).rev()),
            None => Box::new(self.events.values().rev()),
        };
        events
            .take_while(|event| unix_ms.saturating_sub(event.unix_ms) <= AGAIN_WITHIN_MS)
            .find(|event| draft.repeats(event))
            .map(|event| event.seq)
    }

    fn insert(&mut self, event: EventInfo) {
        if let Some(endpoint) = &event.subject.endpoint {
            let seqs = self.by_endpoint.entry(endpoint.clone()).or_default();
            seqs.insert(event.seq);
        }
        self.events.insert(event.seq, event);
    }

    fn take_out(&mut self, seq: u64) -> Option<EventInfo> {
        let event = self.events.remove(&seq)?;
        if let Some(endpoint) = &event.subject.endpoint
            && let Some(seqs) = self.by_endpoint.get_mut(endpoint)
        {
            seqs.remove(&seq);
            if seqs.is_empty() {
                self.by_endpoint.remove(endpoint);
            }
        }
        if !self.unwritten.remove(&seq) {
            self.stale.insert(key(seq));
        }
        Some(event)
    }

    fn drop_surplus(&mut self) {
        let crowded = self.by_endpoint.values();
        let mut surplus: Vec<u64> = crowded
            .flat_map(|seqs| seqs.iter().take(seqs.len().saturating_sub(MAX_OF_ENDPOINT)))
            .copied()
            .collect();
        let left = self.events.len() - surplus.len();
        let gone: BTreeSet<u64> = surplus.iter().copied().collect();
        let oldest = self.events.keys().filter(|seq| !gone.contains(seq));
        surplus.extend(oldest.take(left.saturating_sub(MAX_EVENTS)));
        for seq in surplus {
            self.take_out(seq);
            self.dropped = self.dropped.max(seq);
        }
    }
}

/// Padded, so that records lie in their order.
fn key(seq: u64) -> String {
    format!("{PREFIX}{seq:020}")
}

fn shortened(text: String) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text;
    }
    format!("{}…", crate::rollout::cut(&text, MAX_TEXT_BYTES))
}
