//! Counts what went over a connection, so that after its death it is known whether the other end can
//! have seen the request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug, Default)]
pub(crate) struct Meter {
    read: AtomicU64,
    written: AtomicU64,
    reset: AtomicBool,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) read: u64,
    pub(crate) written: u64,
}

impl Meter {
    pub(crate) fn reading(&self) -> Reading {
        Reading {
            read: self.read.load(Ordering::Acquire),
            written: self.written.load(Ordering::Acquire),
        }
    }

    /// The other end closed with bytes of ours unread. (A Unix socket says so exactly: its end of
    /// file means that all was read.)
    pub(crate) fn was_reset(&self) -> bool {
        self.reset.load(Ordering::Acquire)
    }

    fn note(&self, error: &io::Error) {
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ) {
            self.reset.store(true, Ordering::Release);
        }
    }
}

pub(crate) struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    pub(crate) fn new(stream: S) -> (Self, Arc<Meter>) {
        let meter = Arc::new(Meter::default());
        let metered = Self {
            stream,
            meter: Arc::clone(&meter),
        };
        (metered, meter)
    }

    fn wrote(&self, result: io::Result<usize>) -> Poll<io::Result<usize>> {
        match &result {
            Ok(n) => {
                self.meter.written.fetch_add(*n as u64, Ordering::AcqRel);
            }
            Err(error) => self.meter.note(error),
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        match &result {
            Ok(()) => {
                let n = (buf.filled().len() - before) as u64;
                self.meter.read.fetch_add(n, Ordering::AcqRel);
            }
            Err(error) => self.meter.note(error),
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn a_unix_socket_closed_with_unread_bytes_reads_as_reset_and_with_none_as_end() {
        let (near, far) = UnixStream::pair().expect("pair");
        let (mut near, meter) = Metered::new(near);
        near.write_all(b"request").await.expect("write");
        drop(far);
        assert!(near.read(&mut [0; 8]).await.is_err());
        assert!(meter.was_reset());
        assert_eq!(
            meter.reading(),
            Reading {
                read: 0,
                written: 7
            }
        );

        let (near, mut far) = UnixStream::pair().expect("pair");
        let (mut near, meter) = Metered::new(near);
        near.write_all(b"request").await.expect("write");
        far.read_exact(&mut [0; 7]).await.expect("read");
        drop(far);
        assert_eq!(near.read(&mut [0; 8]).await.expect("end"), 0);
        assert!(!meter.was_reset());
    }
}
