//! A request's body on its way to a replica.
//!
//! Up to [`WHOLE_BYTES`] are read before anything else happens: such a body is **whole**, and can be
//! sent again to another replica. A longer one is **streamed** from the client; it can be sent to
//! another replica only as long as nothing was taken from it. Between gateways a streamed body is
//! therefore held back at a [`Gate`] until the other gateway says `100 Continue`, which it does when it
//! has a slot and a connection to the replica: a "full" comes back before any byte of the body is gone.
//!
//! ```text
//! entry gateway                     replica's gateway                 replica
//!   POST, Expect: 100-continue  ──►   slot? no  ──► 503 stokehold-full
//!   (body held at the gate)           slot? yes, connect ───────────►
//!                               ◄──   100 Continue (hyper, at the first read of the body)
//!   gate opens, body            ──►   streamed on  ─────────────────►
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

/// A body up to this length is read first, and can be replayed.
pub(crate) const WHOLE_BYTES: usize = 256 << 10;

/// Why a body did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("body is larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("nothing of the body came for {0:?}")]
    Idle(Duration),
    #[error("body broke off")]
    Broken,
    #[error("body is being sent elsewhere")]
    Superseded,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    pub(crate) max_bytes: u64,
    /// Between two pieces.
    pub(crate) idle: Duration,
}

#[derive(Clone)]
pub(crate) enum Payload {
    Whole(Bytes),
    Stream(Arc<Stream>),
}

pub(crate) struct Stream {
    state: Mutex<StreamState>,
    /// Something was taken from it.
    touched: AtomicBool,
    /// Only the last [`ForwardBody`] made of it may read it.
    generation: AtomicU64,
}

struct StreamState {
    /// What was read before it was known to be long.
    prefix: Bytes,
    rest: Incoming,
    limits: BodyLimits,
    /// Bytes of `rest` that may still come.
    left: u64,
    idle: Pin<Box<Sleep>>,
    /// `idle` runs: it measures the client's silence, not how long nobody asked for the body.
    waiting: bool,
    pieces: u64,
    failure: Option<BodyError>,
}

/// Reads a body until it ends or is known to be long.
pub(crate) async fn intake(
    mut body: Incoming,
    limits: BodyLimits,
) -> Result<Payload, (BodyError, Incoming)> {
    let too_large = BodyError::TooLarge {
        limit_bytes: limits.max_bytes,
    };
    if body.size_hint().lower() > limits.max_bytes {
        return Err((too_large, body));
    }
    let mut first: Option<Bytes> = None;
    let mut more = BytesMut::new();
    loop {
        let read = first.as_ref().map_or(0, Bytes::len) + more.len();
        if read as u64 > limits.max_bytes {
            return Err((too_large, body));
        }
        if read > WHOLE_BYTES {
            let prefix = joined(first, more);
            return Ok(Payload::Stream(Stream::new(prefix, body, limits)));
        }
        let frame = match tokio::time::timeout(limits.idle, body.frame()).await {
            Err(_) => return Err((BodyError::Idle(limits.idle), body)),
            Ok(None) => return Ok(Payload::Whole(joined(first, more))),
            Ok(Some(Err(_))) => return Err((BodyError::Broken, body)),
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers of a request mean nothing to a replica.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        // Most bodies are one piece, which is then kept as it came.
        match first {
            None => first = Some(data),
            Some(_) => more.extend_from_slice(&data),
        }
    }
}

fn joined(first: Option<Bytes>, more: BytesMut) -> Bytes {
    match first {
        None => Bytes::new(),
        Some(first) if more.is_empty() => first,
        Some(first) => {
            let mut all = BytesMut::with_capacity(first.len() + more.len());
            all.extend_from_slice(&first);
            all.extend_from_slice(&more);
            all.freeze()
        }
    }
}

/// Reads and drops the rest of a body, at most `max_bytes`: a client that is still sending when its
/// answer comes and the connection closes sees a reset, and sends everything again.
pub(crate) async fn drain(mut body: Incoming, max_bytes: u64, idle: Duration) {
    let mut left = max_bytes;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(idle, body.frame()).await {
        let len = frame.data_ref().map_or(0, |data| data.len() as u64);
        match left.checked_sub(len) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

impl Payload {
    /// A body that goes through untouched, for a gateway between the entry and the replica.
    pub(crate) fn passing(body: Incoming, limits: BodyLimits) -> Self {
        Payload::Stream(Stream::new(Bytes::new(), body, limits))
    }

    /// The body of one try. One made before reads nothing more.
    pub(crate) fn body(&self, gate: Option<Arc<Gate>>) -> ForwardBody {
        match self {
            Payload::Whole(bytes) => ForwardBody::Whole(Some(bytes.clone())),
            Payload::Stream(stream) => ForwardBody::Stream {
                generation: stream.generation.fetch_add(1, Ordering::AcqRel) + 1,
                stream: Arc::clone(stream),
                gate,
                ended: false,
            },
        }
    }

    /// Whether it is, or may be, longer than what an entry gateway keeps to send it again.
    pub(crate) fn is_long(&self) -> bool {
        match self {
            Payload::Whole(_) => false,
            Payload::Stream(stream) => {
                let most = stream.size_hint().upper();
                most.is_none_or(|most| most > WHOLE_BYTES as u64)
            }
        }
    }

    /// How many pieces were taken from it.
    pub(crate) fn pieces(&self) -> u64 {
        match self {
            Payload::Whole(_) => 0,
            Payload::Stream(stream) => stream.state.lock().pieces,
        }
    }

    pub(crate) fn is_streamed(&self) -> bool {
        matches!(self, Payload::Stream(_))
    }

    /// What is kept of it in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Payload::Whole(bytes) => bytes.len(),
            Payload::Stream(_) => WHOLE_BYTES,
        }
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Payload::Whole(bytes) if bytes.is_empty())
    }

    /// Whether it can be sent from its beginning.
    pub(crate) fn can_be_sent(&self) -> bool {
        match self {
            Payload::Whole(_) => true,
            Payload::Stream(stream) => !stream.touched.load(Ordering::Acquire),
        }
    }

    /// Drops what is still to come of a streamed body, at most `max_bytes` (see [`drain`]).
    pub(crate) async fn drain_rest(&self, max_bytes: u64) {
        let Payload::Stream(stream) = self else {
            return;
        };
        // Nobody else reads it from now on.
        stream.generation.fetch_add(1, Ordering::AcqRel);
        {
            let mut state = stream.state.lock();
            state.failure = None;
            state.left = max_bytes;
        }
        while let Some(Ok(_)) = std::future::poll_fn(|cx| stream.state.lock().poll(cx)).await {}
    }

    /// What went wrong on the client's side of a streamed body.
    pub(crate) fn failure(&self) -> Option<BodyError> {
        match self {
            Payload::Whole(_) => None,
            Payload::Stream(stream) => stream.state.lock().failure,
        }
    }
}

impl Stream {
    fn new(prefix: Bytes, rest: Incoming, limits: BodyLimits) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(StreamState {
                left: limits.max_bytes.saturating_sub(prefix.len() as u64),
                prefix,
                rest,
                limits,
                idle: Box::pin(tokio::time::sleep(limits.idle)),
                waiting: false,
                pieces: 0,
                failure: None,
            }),
            touched: AtomicBool::new(false),
            generation: AtomicU64::new(0),
        })
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.state.lock();
        let mut hint = SizeHint::new();
        let prefix = state.prefix.len() as u64;
        let rest = state.rest.size_hint();
        hint.set_lower(rest.lower().saturating_add(prefix));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(prefix));
        }
        hint
    }

    fn is_end(&self) -> bool {
        let state = self.state.lock();
        state.prefix.is_empty() && state.rest.is_end_stream()
    }
}

impl StreamState {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if let Some(failure) = self.failure {
            return Poll::Ready(Some(Err(failure)));
        }
        if !self.prefix.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.prefix))));
        }
        let failure = loop {
            let Poll::Ready(frame) = Pin::new(&mut self.rest).poll_frame(cx) else {
                if !self.waiting {
                    self.waiting = true;
                    self.idle.as_mut().reset(Instant::now() + self.limits.idle);
                }
                ready!(self.idle.as_mut().poll(cx));
                break BodyError::Idle(self.limits.idle);
            };
            let data = match frame {
                None => return Poll::Ready(None),
                Some(Err(_)) => break BodyError::Broken,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_) => continue,
                },
            };
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    break BodyError::TooLarge {
                        limit_bytes: self.limits.max_bytes,
                    };
                }
            }
            self.waiting = false;
            self.pieces += 1;
            return Poll::Ready(Some(Ok(data)));
        };
        self.failure = Some(failure);
        Poll::Ready(Some(Err(failure)))
    }
}

/// Holds a body back until the other gateway wants it.
#[derive(Default)]
pub(crate) struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_open() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // It may have been opened before the waker was there to be woken.
        if self.is_open() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// The body of one request to a replica or another gateway.
pub(crate) enum ForwardBody {
    Whole(Option<Bytes>),
    Stream {
        stream: Arc<Stream>,
        generation: u64,
        gate: Option<Arc<Gate>>,
        ended: bool,
    },
}

impl ForwardBody {
    pub(crate) fn empty() -> Self {
        ForwardBody::Whole(None)
    }
}

impl Body for ForwardBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            ForwardBody::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            ForwardBody::Stream {
                stream,
                generation,
                gate,
                ended,
            } => {
                if let Some(gate) = gate {
                    ready!(gate.poll_open(cx));
                }
                if stream.generation.load(Ordering::Acquire) != *generation {
                    return Poll::Ready(Some(Err(BodyError::Superseded)));
                }
                stream.touched.store(true, Ordering::Release);
                let piece = ready!(stream.state.lock().poll(cx));
                *ended = piece.is_none();
                Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ForwardBody::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            ForwardBody::Stream { stream, ended, .. } => *ended || stream.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ForwardBody::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            ForwardBody::Stream { stream, .. } => stream.size_hint(),
        }
    }
}
