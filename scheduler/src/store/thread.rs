//! The store's own thread: its calls block on the disk, and the runtime's threads must not.

use std::thread;

use scheduler_core::store_op::{MAX_OPS, Op};
use shared::ids::{Epoch, Revision};
use tokio::sync::{mpsc, oneshot};

use super::{CommitError, Store};

/// The control task waits for each commit, so one call is under way at a time.
const QUEUE: usize = 4;

/// The store's thread has ended: it panicked, since it stops only after its handles.
#[derive(Debug, thiserror::Error)]
#[error("the store's thread has ended")]
pub struct StoreGone;

enum Call {
    Commit {
        groups: Vec<Vec<Op>>,
        expected_epoch: Epoch,
        answer: oneshot::Sender<Result<Revision, CommitError>>,
    },
    BeginEpoch {
        at_least: Epoch,
        answer: oneshot::Sender<Result<Epoch, CommitError>>,
    },
}

#[derive(Clone)]
pub struct StoreHandle {
    calls: mpsc::Sender<Call>,
}

/// Moves a store to a thread, which closes the store and ends after the last handle is dropped.
pub fn spawn(
    mut store: impl Store + 'static,
) -> std::io::Result<(StoreHandle, thread::JoinHandle<()>)> {
    let (calls, mut queue) = mpsc::channel(QUEUE);
    let builder = thread::Builder::new().name("store".into());
    let thread = builder.spawn(move || {
        while let Some(call) = queue.blocking_recv() {
            // An asker that no longer waits has been cancelled; what was asked for is done.
            match call {
                Call::Commit {
                    groups,
                    expected_epoch,
                    answer,
                } => drop(answer.send(commit_all(&mut store, groups, expected_epoch))),
                Call::BeginEpoch { at_least, answer } => {
                    drop(answer.send(store.begin_epoch(at_least)));
                }
            }
        }
    })?;
    Ok((StoreHandle { calls }, thread))
}

impl StoreHandle {
    /// Commits groups of any number, in batches as large as the store allows. A group is what one
    /// decision writes: a crash in between leaves it whole or not at all, as long as it fits a
    /// batch. Returns once all are on disk.
    pub async fn commit(
        &self,
        groups: Vec<Vec<Op>>,
        expected_epoch: Epoch,
    ) -> Result<Result<Revision, CommitError>, StoreGone> {
        let (answer, receive) = oneshot::channel();
        let call = Call::Commit {
            groups,
            expected_epoch,
            answer,
        };
        self.calls.send(call).await.map_err(|_| StoreGone)?;
        receive.await.map_err(|_| StoreGone)
    }

    pub async fn begin_epoch(
        &self,
        at_least: Epoch,
    ) -> Result<Result<Epoch, CommitError>, StoreGone> {
        let (answer, receive) = oneshot::channel();
        let call = Call::BeginEpoch { at_least, answer };
        self.calls.send(call).await.map_err(|_| StoreGone)?;
        receive.await.map_err(|_| StoreGone)
    }
}

fn commit_all(
    store: &mut impl Store,
    groups: Vec<Vec<Op>>,
    expected_epoch: Epoch,
) -> Result<Revision, CommitError> {
    let mut revision = Revision(0);
    for batch in batches(groups) {
        revision = store.commit(&batch, expected_epoch)?;
    }
    Ok(revision)
}

/// Packs groups, in their order, so that none is cut that need not be.
fn batches(groups: Vec<Vec<Op>>) -> Vec<Vec<Op>> {
    let mut batches: Vec<Vec<Op>> = Vec::new();
    for group in groups {
        let room = batches.last().map_or(0, |last| MAX_OPS - last.len());
        match batches.last_mut() {
            Some(last) if group.len() <= room => last.extend(group),
            _ => batches.extend(group.chunks(MAX_OPS).map(<[Op]>::to_vec)),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(len: usize) -> Vec<Op> {
        let op = |n| Op::Delete {
            key: format!("a/{n}"),
        };
        (0..len).map(op).collect()
    }

    #[test]
    fn what_one_decision_writes_is_cut_only_where_it_exceeds_a_batch() {
        let sizes = |groups: &[usize]| -> Vec<usize> {
            let groups = groups.iter().map(|len| group(*len)).collect();
            batches(groups).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[2, 2, 2]), [6]);
        assert_eq!(sizes(&[127, 2, 126]), [127, 128]);
        assert_eq!(sizes(&[1, 300, 1]), [1, 128, 128, 45]);
    }
}
