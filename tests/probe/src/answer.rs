//! The bodies of answers, whole or in chunks.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::state::InFlight;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

pub(crate) const JSON: &str = "application/json";
const FILLING: &str = "application/octet-stream";

pub(crate) fn whole(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        answer.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    answer
}

pub(crate) fn json(value: &Value) -> Answer {
    whole(StatusCode::OK, JSON, value.to_string())
}

/// MLflow's shape of errors.
pub(crate) fn error(status: StatusCode, message: &str) -> Answer {
    let code = match status.as_u16() {
        400..=403 | 405..=499 => "BAD_REQUEST",
        404 => "ENDPOINT_NOT_FOUND",
        503 => "TEMPORARILY_UNAVAILABLE",
        _ => "INTERNAL_ERROR",
    };
    let body = json!({"error_code": code, "message": message});
    whole(status, JSON, body.to_string())
}

/// Chunks with a pause before each. The request is answered when the last one has been taken.
pub(crate) fn chunks(
    content_type: &str,
    interval: Duration,
    chunks: impl Iterator<Item = Bytes> + Send + 'static,
    in_flight: InFlight,
) -> Answer {
    let body = StreamBody::new(paced(interval, chunks, in_flight)).boxed_unsync();
    whole(StatusCode::OK, content_type, Bytes::new()).map(|_| body)
}

fn paced(
    interval: Duration,
    chunks: impl Iterator<Item = Bytes>,
    in_flight: InFlight,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let state = (chunks.peekable(), Some(in_flight));
    stream::unfold(state, move |(mut chunks, mut in_flight)| async move {
        let chunk = chunks.next();
        if chunk.is_some() && !interval.is_zero() {
            tokio::time::sleep(interval).await;
        }
        // With the last chunk, since nobody asks for more when the length was said up front.
        if chunks.peek().is_none()
            && let Some(in_flight) = in_flight.take()
        {
            in_flight.answered();
        }
        Some((Ok(Frame::data(chunk?)), (chunks, in_flight)))
    })
}

/// This many bytes of filling, in pieces, with their length said up front.
pub(crate) fn filling(len: u64, in_flight: InFlight) -> Answer {
    if len == 0 {
        in_flight.answered();
        return whole(StatusCode::OK, FILLING, Bytes::new());
    }
    const PIECE: Bytes = Bytes::from_static(&[b'x'; 64 * 1024]);
    let mut left = len;
    let pieces = std::iter::from_fn(move || {
        let piece = left.min(PIECE.len() as u64);
        left -= piece;
        (piece > 0).then(|| PIECE.slice(..piece as usize))
    });
    let mut answer = chunks(
        "application/octet-stream",
        Duration::ZERO,
        pieces,
        in_flight,
    );
    answer.headers_mut().insert(CONTENT_LENGTH, len.into());
    answer
}
