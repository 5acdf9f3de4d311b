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
        batch: Vec<Op>,
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
                    batch,
                    expected_epoch,
                    answer,
                } => drop(answer.send(commit_all(&mut store, &batch, expected_epoch))),
                Call::BeginEpoch { at_least, answer } => {
                    drop(answer.send(store.begin_epoch(at_least)));
                }
            }
        }
    })?;
    Ok((StoreHandle { calls }, thread))
}

impl StoreHandle {
    /// Commits operations of any number, in batches as large as the store allows. Returns once all
    /// are on disk.
    pub async fn commit(
        &self,
        batch: Vec<Op>,
        expected_epoch: Epoch,
    ) -> Result<Result<Revision, CommitError>, StoreGone> {
        let (answer, receive) = oneshot::channel();
        let call = Call::Commit {
            batch,
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
    ops: &[Op],
    expected_epoch: Epoch,
) -> Result<Revision, CommitError> {
    let mut revision = Revision(0);
    for batch in ops.chunks(MAX_OPS) {
        revision = store.commit(batch, expected_epoch)?;
    }
    Ok(revision)
}
