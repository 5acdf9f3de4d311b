//! Both stores by one suite of behaviour; the one on disk also with garbled files.

use std::path::Path;

use scheduler::store::{CommitError, MemoryStore, OpenError, SledStore, Store, read_export};
use scheduler_core::store_op::{MAX_OPS, MAX_VALUE_BYTES, Op};
use shared::ids::{Epoch, Revision};

fn put(key: &str, value: &str) -> Op {
    Op::Put {
        key: key.into(),
        value: value.into(),
    }
}

fn open(folder: &Path) -> Result<SledStore, OpenError> {
    SledStore::open(&folder.join("state"), &folder.join("exports"))
}

type Visit<'a> = &'a mut dyn FnMut(&mut dyn Store);

/// Runs `test` on each store. It gets a function that opens what an earlier call left behind.
fn on_both(test: impl Fn(&mut dyn FnMut(Visit<'_>))) {
    let mut memory = Some(MemoryStore::new());
    test(&mut |visit| {
        let mut store = memory.take().expect("is put back");
        visit(&mut store);
        memory = Some(store.crash());
    });
    let folder = tempfile::tempdir().expect("folder");
    test(&mut |visit| visit(&mut open(folder.path()).expect("opens")));
}

#[test]
fn what_was_committed_is_there_for_a_later_process() {
    on_both(|process| {
        process(&mut |store| {
            let epoch = store.begin_epoch(Epoch(0)).expect("begins");
            assert_eq!(epoch, Epoch(1));
            let first = [put("a/1", "one"), put("a/2", "two"), put("b", "three")];
            store.commit(&first, epoch).expect("commits");
            let second = [Op::Delete { key: "a/1".into() }, put("b", "four")];
            let revision = store.commit(&second, epoch).expect("commits");
            assert_eq!(revision, Revision(3));
        });
        process(&mut |store| {
            let found = store.load().expect("loads");
            let expected = [("a/2", "two"), ("b", "four")];
            let expected = expected.map(|(k, v)| (k.to_owned(), v.as_bytes().to_vec()));
            assert_eq!(found.entries, expected.into());
            assert_eq!((found.revision, found.epoch), (Revision(3), Epoch(1)));
        });
    });
}

#[test]
fn an_overtaken_epoch_writes_nothing() {
    on_both(|process| {
        process(&mut |store| {
            let old = store.begin_epoch(Epoch(0)).expect("begins");
            let new = store.begin_epoch(Epoch(41)).expect("begins");
            assert_eq!(new, Epoch(41), "at least what was asked for");
            let refused = store.commit(&[put("a", "x")], old);
            assert!(matches!(refused, Err(CommitError::EpochMoved { .. })));
            assert!(store.load().expect("loads").entries.is_empty());
        });
        process(&mut |store| {
            assert_eq!(store.begin_epoch(Epoch(5)).expect("begins"), Epoch(42));
        });
    });
}

#[test]
fn a_batch_that_no_store_could_carry_is_refused_whole() {
    on_both(|process| {
        process(&mut |store| {
            let epoch = store.begin_epoch(Epoch(0)).expect("begins");
            let big = "x".repeat(MAX_VALUE_BYTES + 1);
            let wrong = [
                vec![put("good", "1"), put("big", &big)],
                vec![put("good", "1"), put("", "1")],
                vec![put("good", "1"), put("!epoch", "1")],
                vec![put("good", "1"), put("tab\t", "1")],
                vec![put("good", "1"), put(&"k".repeat(257), "1")],
            ];
            for batch in wrong {
                let refused = store.commit(&batch, epoch);
                assert!(
                    matches!(refused, Err(CommitError::Record { .. })),
                    "{batch:?}"
                );
            }
            let many: Vec<Op> = (0..=MAX_OPS).map(|i| put(&format!("k{i}"), "1")).collect();
            let refused = store.commit(&many, epoch);
            assert!(matches!(refused, Err(CommitError::TooManyOps { len: 129 })));
            assert!(store.load().expect("loads").entries.is_empty());
        });
    });
}

#[test]
fn records_of_the_largest_size_stay_out_of_blob_files_that_sled_does_not_sync() {
    let folder = tempfile::tempdir().expect("folder");
    let mut store = open(folder.path()).expect("opens");
    let epoch = store.begin_epoch(Epoch(0)).expect("begins");
    let value = "x".repeat(MAX_VALUE_BYTES);
    for round in 0..3 {
        let batch: Vec<Op> = (0..MAX_OPS)
            .map(|i| put(&format!("k{i:03}{round}"), &value))
            .collect();
        store.commit(&batch, epoch).expect("commits");
        let blobs = std::fs::read_dir(folder.path().join("state/blobs")).expect("lists");
        assert_eq!(blobs.count(), 0);
    }
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let folder = tempfile::tempdir().expect("folder");
    let _first = open(folder.path()).expect("opens");
    let refused = open(folder.path()).err().expect("is locked");
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
}

#[test]
fn a_store_that_was_cut_or_garbled_is_an_error_with_advice_or_whole() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("empty", Vec::clear),
        ("half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("first bytes", |bytes| bytes[..64].fill(0xa5)),
        ("first kilobytes", |bytes| bytes[..2 << 10].fill(0x5a)),
        ("everything", |bytes| bytes.fill(0x5a)),
    ];
    for (name, damage) in damages {
        let folder = tempfile::tempdir().expect("folder");
        let written = filled(folder.path(), 40);
        let path = folder.path().join("state/db");
        let mut bytes = std::fs::read(&path).expect("reads");
        damage(&mut bytes);
        std::fs::write(&path, bytes).expect("writes");
        let error = match open(folder.path()).map(|mut store| store.load()) {
            Ok(Ok(found)) => {
                assert_eq!(found.entries.len(), written, "{name}: loss went unseen");
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        println!("{name}: {error}");
        assert!(error.contains("restore-store"), "{name}: {error}");
        assert!(
            error.contains(&folder.path().display().to_string()),
            "{name}: {error}"
        );
    }
}

#[test]
fn a_damaged_store_is_restored_from_its_newest_export() {
    let folder = tempfile::tempdir().expect("folder");
    filled(folder.path(), 300);
    let mut store = open(folder.path()).expect("opens");
    store
        .begin_epoch(Epoch(0))
        .expect("begins, and exports the records");
    drop(store);
    let state = folder.path().join("state");
    let exports = folder.path().join("exports");
    let before = open(folder.path()).expect("opens").load().expect("loads");
    std::fs::rename(&state, folder.path().join("damaged")).expect("moves");
    let refused = open(folder.path()).err().expect("an empty store is behind");
    assert!(matches!(refused, OpenError::Behind { .. }), "{refused}");
    std::fs::remove_dir_all(&state).expect("removes");
    let newest = std::fs::read_dir(&exports).expect("lists");
    let newest = newest.map(|e| e.expect("entry").path());
    let newest = newest.filter(|path| path.extension().is_some());
    let newest = newest.max().expect("one");
    let export = read_export(&newest).expect("reads");
    SledStore::restore(&state, &exports, &export).expect("restores");
    assert!(
        SledStore::restore(&state, &exports, &export).is_err(),
        "not over another"
    );
    let after = open(folder.path()).expect("opens").load().expect("loads");
    assert_eq!(after, before);
}

/// Commits so many records; returns how many.
fn filled(folder: &Path, records: usize) -> usize {
    let mut store = open(folder).expect("opens");
    let epoch = store.begin_epoch(Epoch(0)).expect("begins");
    for i in 0..records {
        let op = put(&format!("record/{i}"), &format!("{{\"i\":{i},\"v\":1}}"));
        store.commit(&[op], epoch).expect("commits");
    }
    records
}
