//! Reads what a handler left unread of a request's body, before the answer goes out.
//!
//! Most refusals (a missing token, an unknown name, an unsupported route) are known before the body
//! is. On HTTP/2 an answer that overtakes the body resets the stream, and on HTTP/1.1 it closes the
//! connection: clients that are still writing see a broken connection in place of the answer, and
//! some send everything again.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::body::MAX_DRAINED_BYTES;

/// Whoever sends more slowly gets the answer without it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a body goes when its reader drops it.
type Left = Arc<Mutex<Option<Body>>>;

pub(super) async fn drained(request: Request, next: Next) -> Response {
    let left = Left::default();
    let request = request.map(|inner| {
        Body::new(Lent {
            inner,
            left: Arc::clone(&left),
        })
    });
    let response = next.run(request).await;
    // The lock is held for a move.
    let body = left.lock().expect("no code panics under this lock").take();
    if let Some(body) = body {
        // What comes of it makes no difference to the answer.
        let _ = tokio::time::timeout(PATIENCE, drain(body)).await;
    }
    response
}

async fn drain(mut body: Body) {
    let mut len = 0usize;
    while let Some(Ok(frame)) = body.frame().await {
        len = len.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if len > MAX_DRAINED_BYTES {
            return;
        }
    }
}

/// A body that is given back by whoever drops it.
struct Lent {
    inner: Body,
    left: Left,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.inner.is_end_stream()
            && let Ok(mut left) = self.left.lock()
        {
            *left = Some(std::mem::take(&mut self.inner));
        }
    }
}
