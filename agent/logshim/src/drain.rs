//! Reads both pipes until their end and hands records to the thread that writes them.
//!
//! A busy disk may hold the reader up, and so the replica, for a fifth of the time at most
//! ([`Patience`]); what the disk doesn't take by then is dropped and counted.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use crate::journal::{Journal, Lost};
use crate::lines::{Lines, Piece};
use crate::record::{self, Source};

/// What one read takes at most: a whole pipe.
const CHUNK_BYTES: usize = 64 * 1024;
/// A batch is sent when a round of reads is over, or when it is this long.
const BATCH_BYTES: usize = 64 * 1024;
/// Batches between reader and writer: enough to keep both busy, few since each is memory.
const QUEUE: usize = 2;
/// How often the writer tries to own up to a loss while the replica is silent.
const RETRY: Duration = Duration::from_secs(1);
const STACK_BYTES: usize = 128 * 1024;

/// Returns when both pipes have ended; what the log lacks and doesn't say is in the result.
pub(crate) fn run(stdout: OwnedFd, stderr: OwnedFd, journal: Journal) -> Option<String> {
    let (queue, batches) = sync_channel(QUEUE);
    // Without a thread nothing can be written; the channel's end is gone then, so everything counts as lost.
    let writer = thread::Builder::new()
        .name("journal".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || write_batches(&batches, journal));

    let mut outbox = Outbox::new(queue);
    read_streams(
        [
            Stream::new(Source::Stdout, stdout),
            Stream::new(Source::Stderr, stderr),
        ],
        &mut outbox,
    );
    let unsent = outbox.close();
    let lost = match writer.map(thread::JoinHandle::join) {
        Ok(Ok(lost)) => lost,
        Ok(Err(_)) => return Some("the writing thread died".to_owned()),
        Err(err) => return Some(format!("no thread to write with: {err}; {unsent}")),
    };
    (!lost.is_nothing()).then(|| lost.to_string())
}

struct Stream {
    source: Source,
    /// `None`: it has ended.
    pipe: Option<OwnedFd>,
    lines: Lines,
}

impl Stream {
    fn new(source: Source, pipe: OwnedFd) -> Self {
        Self {
            source,
            pipe: Some(pipe),
            lines: Lines::default(),
        }
    }
}

fn read_streams(mut streams: [Stream; 2], outbox: &mut Outbox) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while streams.iter().any(|stream| stream.pipe.is_some()) {
        wait_for_any(&streams);
        for stream in &mut streams {
            let Some(pipe) = &stream.pipe else { continue };
            if !is_ready(pipe) {
                continue;
            }
            let (source, now) = (stream.source, since_1970());
            match read(pipe, &mut chunk) {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // A pipe that can't be read any more has ended as well.
                Ok(0) | Err(_) => {
                    stream.pipe = None;
                    stream.lines.end(|piece| outbox.add(now, source, &piece));
                }
                Ok(len) => {
                    stream
                        .lines
                        .push(&chunk[..len], |piece| outbox.add(now, source, &piece));
                }
            }
        }
        outbox.send();
    }
}

/// Errors of poll (EINTR, ENOMEM) need no answer: the reads after it look again.
fn wait_for_any(streams: &[Stream; 2]) {
    let pipes = streams.iter().filter_map(|stream| stream.pipe.as_ref());
    let mut polled: Vec<PollFd<'_>> = pipes
        .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
        .collect();
    let _ = poll(&mut polled, PollTimeout::NONE);
}

/// Whether a read returns at once, with bytes, the end, or an error.
fn is_ready(pipe: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(1..))
}

/// Records on their way to the writer.
struct Outbox {
    queue: SyncSender<Batch>,
    records: Vec<u8>,
    lost: Lost,
    patience: Patience,
}

struct Batch {
    records: Vec<u8>,
    /// What had to be dropped before these records.
    lost: Lost,
}

impl Outbox {
    fn new(queue: SyncSender<Batch>) -> Self {
        let patience = Patience::new(Instant::now());
        Self {
            queue,
            records: Vec::new(),
            lost: Lost::default(),
            patience,
        }
    }

    fn add(&mut self, now: Duration, source: Source, piece: &Piece<'_>) {
        record::append(&mut self.records, now, source, piece);
        if self.records.len() >= BATCH_BYTES {
            self.send();
        }
    }

    fn send(&mut self) {
        if self.records.is_empty() {
            return;
        }
        self.patience.refill(Instant::now());
        let mut batch = self.take_batch();
        loop {
            batch = match self.queue.try_send(batch) {
                Ok(()) => return,
                Err(TrySendError::Full(batch)) => match self.patience.next_pause() {
                    Some(pause) => {
                        thread::sleep(pause);
                        batch
                    }
                    None => return self.drop_batch(batch, &"the disk does not keep up"),
                },
                Err(TrySendError::Disconnected(batch)) => {
                    return self.drop_batch(batch, &"nothing writes");
                }
            };
        }
    }

    /// The replica is gone: the writer may take its time.
    fn close(mut self) -> Lost {
        let batch = self.take_batch();
        if let Err(refused) = self.queue.send(batch) {
            self.drop_batch(refused.0, &"nothing writes");
        }
        self.lost
    }

    fn take_batch(&mut self) -> Batch {
        Batch {
            records: std::mem::take(&mut self.records),
            lost: std::mem::take(&mut self.lost),
        }
    }

    fn drop_batch(&mut self, batch: Batch, cause: &dyn fmt::Display) {
        self.lost = batch.lost;
        self.lost.add(&batch.records, cause);
    }
}

/// How long the reader may still wait for the writer: it gains a fifth of the time that passes.
struct Patience {
    left: Duration,
    refilled: Instant,
}

impl Patience {
    const MOST: Duration = Duration::from_millis(200);
    const PAUSE: Duration = Duration::from_millis(1);
    const GAIN: u32 = 5;

    fn new(now: Instant) -> Self {
        Self {
            left: Self::MOST,
            refilled: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        self.left = Self::MOST.min(self.left + now.duration_since(self.refilled) / Self::GAIN);
        self.refilled = now;
    }

    fn next_pause(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(Self::PAUSE)?;
        Some(Self::PAUSE)
    }
}

fn write_batches(batches: &Receiver<Batch>, mut journal: Journal) -> Lost {
    loop {
        let batch = if journal.lost().is_nothing() {
            batches.recv().map_err(RecvTimeoutError::from)
        } else {
            batches.recv_timeout(RETRY)
        };
        match batch {
            Ok(batch) => {
                journal.add_lost(batch.lost);
                journal.append(&batch.records, since_1970());
            }
            // What fails here stays counted, for the next time.
            Err(RecvTimeoutError::Timeout) => drop(journal.own_up(since_1970())),
            Err(RecvTimeoutError::Disconnected) => {
                drop(journal.own_up(since_1970()));
                return journal.into_lost();
            }
        }
    }
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(outbox: &mut Outbox, text: &str) {
        outbox.add(
            Duration::ZERO,
            Source::Stdout,
            &Piece {
                bytes: text.as_bytes(),
                partial: false,
            },
        );
        outbox.send();
    }

    #[test]
    fn a_writer_that_hangs_costs_lines_and_a_bounded_wait_and_the_next_batch_says_so() {
        let (queue, batches) = sync_channel(1);
        let mut outbox = Outbox::new(queue);
        let started = Instant::now();
        for text in ["kept", "lost", "lost too"] {
            add(&mut outbox, text);
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{:?}",
            started.elapsed()
        );
        assert!(batches.recv().unwrap().lost.is_nothing());
        add(&mut outbox, "kept again");
        let lost = batches.recv().unwrap().lost.to_string();
        assert!(
            lost.starts_with("dropped 2 lines, ") && lost.ends_with("keep up"),
            "{lost}"
        );
        assert!(outbox.close().is_nothing());
    }

    #[test]
    fn patience_is_a_fifth_of_the_time() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        while patience.next_pause().is_some() {}
        patience.refill(start + Duration::from_millis(50));
        assert_eq!(patience.left, Duration::from_millis(10));
        patience.refill(start + Duration::from_secs(3600));
        assert_eq!(patience.left, Patience::MOST);
    }

    #[test]
    fn without_a_writer_everything_counts_as_lost() {
        let (queue, batches) = sync_channel(1);
        drop(batches);
        let mut outbox = Outbox::new(queue);
        add(&mut outbox, "x");
        assert!(outbox.close().to_string().ends_with("nothing writes"));
    }
}
