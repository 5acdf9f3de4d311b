//! The log by itself.

use proptest::prelude::*;
use shared::api::events::EventKind;

use super::*;

fn draft(endpoint: usize, message: &str) -> Draft {
    let name = EndpointName::parse(&format!("e{endpoint}")).expect("valid");
    Draft::warning(EventKind::ReplicaFailed, message).endpoint(&name)
}

/// What a store holds after these writes.
fn write(entries: &mut Entries, ops: Vec<Op>) {
    for op in ops {
        match op {
            Op::Put { key, value } => drop(entries.insert(key, value)),
            Op::Delete { key } => drop(entries.remove(&key)),
        }
    }
}

fn all(log: &Log) -> Vec<EventInfo> {
    log.newest(&Filter::default(), usize::MAX).events
}

#[test]
fn what_happens_again_is_one_event_that_counts_and_moves_to_the_end() {
    let mut log = Log::default();
    log.record(draft(1, "failed").because("exit code 1"), 1_000);
    log.record(draft(2, "failed"), 2_000);
    log.record(draft(1, "failed").because("exit code 2"), 3_000);
    log.take_writes(true, MonoTime::ZERO);
    let events = all(&log);
    let seen: Vec<_> = events.iter().map(|it| (it.seq, it.count)).collect();
    assert_eq!(seen, [(2, 1), (3, 2)]);
    let again = &events[1];
    assert_eq!((again.first_unix_ms, again.unix_ms), (1_000, 3_000));
    assert_eq!(again.cause, "exit code 2", "the last one's");
    log.record(draft(1, "failed"), 3_000 + AGAIN_WITHIN_MS + 1);
    log.record(draft(1, "failed in another way"), 3_000);
    let counts: Vec<u32> = log.events.values().map(|it| it.count).collect();
    assert_eq!(
        counts,
        [1, 2, 1, 1],
        "much later, or in other words: another event"
    );
}

#[test]
fn nothing_is_shown_before_the_store_has_it() {
    let mut log = Log::default();
    log.record(draft(1, "a"), 1);
    assert_eq!((log.last_shown(), all(&log).len()), (0, 0));
    let now = MonoTime::from_secs(10);
    assert_eq!(log.take_writes(false, now).len(), 1, "a second is over");
    assert_eq!((log.last_shown(), all(&log).len()), (1, 1));
    log.record(draft(1, "b"), 1);
    assert_eq!(log.take_writes(false, now).len(), 0, "the next second");
    assert_eq!(log.last_shown(), 1);
    assert_eq!(log.take_writes(true, now).len(), 1, "a commit comes by");
    assert_eq!(log.last_shown(), 2);
}

#[test]
fn a_flood_is_written_bit_by_bit_and_is_whole_in_the_end() {
    let mut log = Log::default();
    let mut entries = Entries::new();
    for n in 0..400 {
        log.record(draft(n, "failed"), 1);
    }
    let mut seconds = 0;
    while log.last_shown() < 400 {
        let ops = log.take_writes(true, MonoTime::from_secs(seconds));
        assert!(ops.len() <= WRITES_PER_PERIOD, "{} at once", ops.len());
        let more = log.take_writes(true, MonoTime::from_secs(seconds));
        assert_eq!(more, [], "the second's share is used up");
        write(&mut entries, ops);
        seconds += 1;
    }
    assert_eq!(seconds, 400_u64.div_ceil(WRITES_PER_PERIOD as u64));
    assert_eq!(all(&Log::restore(&entries)), all(&log));
}

#[test]
fn whoever_was_away_is_told_what_is_missing() {
    let mut log = Log::default();
    for n in 0..MAX_OF_ENDPOINT + 10 {
        log.record(draft(1, &format!("failure {n}")), 1);
    }
    let mut second = 0;
    while log.last_shown() < 110 {
        log.take_writes(true, MonoTime::from_secs(second));
        second += 1;
    }
    let page = log.after(3, &Filter::default(), 20);
    let missed = Missed {
        after_seq: 3,
        up_to_seq: 10,
    };
    assert_eq!(page.missed, Some(missed));
    assert_eq!(
        (page.events[0].seq, page.events.len(), page.up_to),
        (11, 20, 30)
    );
    let page = log.after(page.up_to, &Filter::default(), 200);
    assert_eq!(
        (page.missed, page.events.len(), page.up_to),
        (None, 80, 110)
    );
    let page = log.after(110, &Filter::default(), 200);
    assert_eq!((page.missed, page.events.len(), page.up_to), (None, 0, 110));
}

#[test]
fn a_record_that_is_not_understood_is_dropped_and_stops_nothing() {
    let mut log = Log::default();
    log.record(draft(1, "kept"), 1);
    let mut entries = Entries::new();
    write(&mut entries, log.take_writes(true, MonoTime::ZERO));
    entries.insert("event/x".into(), b"{".to_vec());
    entries.insert("event/00000000000000000007".into(), br#"{"v":9}"#.to_vec());
    let mut restored = Log::restore(&entries);
    assert_eq!(all(&restored), all(&log));
    write(&mut entries, restored.take_writes(false, MonoTime::ZERO));
    assert_eq!(entries.len(), 1);
}

#[test]
fn a_long_text_is_cut_and_fits_a_record() {
    let mut log = Log::default();
    // Characters that JSON escapes take up to six bytes each.
    let long = "\u{1}".repeat(10_000);
    log.record(draft(1, &long).because(&long), 1);
    log.take_writes(true, MonoTime::ZERO);
    assert!(all(&log)[0].cause.len() <= MAX_TEXT_BYTES + '…'.len_utf8());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, and wherever the process dies: bounds hold, numbers are given out once, and
    /// what was shown is there afterwards unless newer events took its place.
    #[test]
    fn bounds_hold_and_what_was_shown_survives(
        steps in proptest::collection::vec((0..14_usize, 0..40_usize, 0..4_u64, 0..200_u32), 1..2500)
    ) {
        let mut log = Log::default();
        let mut entries = Entries::new();
        let (mut now, mut unix_ms) = (MonoTime::ZERO, 0);
        let mut shown = 0;
        for (endpoint, words, seconds, chance) in steps {
            now = now + Duration::from_secs(seconds);
            unix_ms += seconds * 1000;
            log.record(draft(endpoint, &format!("failure {words}")), unix_ms);
            let ops = log.take_writes(chance % 3 == 0, now);
            prop_assert!(ops.len() <= 2 * WRITES_PER_PERIOD);
            write(&mut entries, ops);
            prop_assert!(log.last_shown() >= shown, "what was shown stays shown");
            shown = log.last_shown();
            prop_assert!(log.events.len() <= MAX_EVENTS);
            prop_assert!(log.by_endpoint.values().all(|seqs| seqs.len() <= MAX_OF_ENDPOINT));
            if chance == 0 {
                let before = all(&log);
                let settled = log.stale.is_empty();
                log = Log::restore(&entries);
                prop_assert!(log.last >= shown, "no number is shown twice");
                let after = log.events.values().cloned().collect::<Vec<_>>();
                let lost = before.iter().find(|event| !after.contains(event));
                // Records that were not deleted yet take the places of older ones.
                prop_assert!(lost.is_none() || !settled, "{lost:?}");
            }
        }
    }
}
