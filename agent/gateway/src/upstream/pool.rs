//! Idle connections of one place, last in, first out: the last one used is the least likely to have
//! gone stale, and the rest age until they are closed.
//!
//! Each connection is driven by a task of its own that ends with it: it sees the other end close while
//! the connection idles, and a dropped [`Connection`] closes it.

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::meter::{Meter, Metered};
use crate::payload::ForwardBody;

/// A connection whose last answer has just ended is ready at once; one whose request is still being
/// written (the answer came early) is not waited for.
const READY_WAIT: Duration = Duration::from_millis(5);

pub(crate) struct Connection {
    pub(crate) sender: SendRequest<ForwardBody>,
    pub(crate) meter: Arc<Meter>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolLimits {
    pub(crate) max_idle: usize,
    pub(crate) idle_timeout: Duration,
}

pub(crate) struct Pool {
    limits: PoolLimits,
    drivers: TaskTracker,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub(crate) fn new(limits: PoolLimits, drivers: TaskTracker) -> Arc<Self> {
        Arc::new(Self {
            limits,
            drivers,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// An idle connection that is still open, as far as is known.
    pub(crate) async fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = self.pop()?;
            if connection.sender.is_closed() {
                continue;
            }
            let ready = tokio::time::timeout(READY_WAIT, connection.sender.ready());
            if matches!(ready.await, Ok(Ok(()))) {
                return Some(connection);
            }
        }
    }

    fn pop(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let last = idle.pop()?;
        if last.since.elapsed() < self.limits.idle_timeout {
            return Some(last.connection);
        }
        // All others are older still.
        idle.clear();
        None
    }

    /// Takes a connection back whose answer has ended.
    pub(crate) fn put(&self, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < self.limits.max_idle {
            idle.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Closes what has idled too long.
    pub(crate) fn reap(&self) {
        let timeout = self.limits.idle_timeout;
        self.idle
            .lock()
            .retain(|i| i.since.elapsed() < timeout && !i.connection.sender.is_closed());
    }

    pub(crate) fn clear(&self) {
        self.idle.lock().clear();
    }

    /// Makes a connection of an open stream.
    pub(crate) async fn handshake<S>(&self, stream: S) -> hyper::Result<Connection>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, meter) = Metered::new(stream);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        self.drivers.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "upstream connection ended");
            }
        });
        Ok(Connection { sender, meter })
    }
}

/// Of an answer's head, and of what is buffered at once.
const MAX_HEAD_BYTES: usize = 64 << 10;
