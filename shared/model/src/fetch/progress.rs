//! Bytes that are there, of all, for everybody who waits.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

pub(super) struct Progress<'a> {
    done_bytes: AtomicU64,
    total_bytes: u64,
    to: &'a [&'a watch::Sender<(u64, u64)>],
}

impl<'a> Progress<'a> {
    pub(super) fn new(to: &'a [&'a watch::Sender<(u64, u64)>], total_bytes: u64) -> Self {
        let progress = Self {
            done_bytes: AtomicU64::new(0),
            total_bytes,
            to,
        };
        progress.add(0);
        progress
    }

    pub(super) fn add(&self, bytes: u64) {
        let done_bytes = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        for sender in self.to {
            sender.send_replace((done_bytes, self.total_bytes));
        }
    }
}
