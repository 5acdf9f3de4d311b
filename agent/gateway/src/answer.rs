//! Answers: those that the gateway gives itself, and those that stream through it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use shared::api::ErrorBody;

use crate::in_flight::InFlight;
use crate::payload::BodyError;

/// An error as clients of the REST API know it: status, `error_code`, message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// Seconds, for clients that come back by themselves.
    pub(crate) retry_after: Option<u32>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: String) -> Self {
        Self {
            status,
            code,
            message,
            retry_after: None,
        }
    }

    pub(crate) fn no_route(path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        let message = format!("no such route: {path}");
        Self::new(StatusCode::NOT_FOUND, "ENDPOINT_NOT_FOUND", message)
    }

    pub(crate) fn wrong_method(allowed: &Method) -> Self {
        let message = format!("this route takes {allowed} only");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "ENDPOINT_NOT_FOUND",
            message,
        )
    }

    pub(crate) fn uri_too_long() -> Self {
        let message = "the request's path and query are too long".to_owned();
        Self::new(StatusCode::URI_TOO_LONG, "BAD_REQUEST", message)
    }

    pub(crate) fn unauthenticated(problem: &str) -> Self {
        let message =
            format!("{problem}: send `Authorization: Bearer TOKEN` with a token of this cluster");
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message)
    }

    pub(crate) fn denied(message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "PERMISSION_DENIED", message)
    }

    pub(crate) fn not_found(what: String) -> Self {
        let message = format!("{what} does not exist");
        Self::new(StatusCode::NOT_FOUND, "RESOURCE_DOES_NOT_EXIST", message)
    }

    pub(crate) fn body(error: BodyError) -> Self {
        let (status, code) = match error {
            BodyError::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "INVALID_PARAMETER_VALUE")
            }
            BodyError::Idle(_) => (StatusCode::REQUEST_TIMEOUT, "BAD_REQUEST"),
            BodyError::Broken | BodyError::Superseded => (StatusCode::BAD_REQUEST, "BAD_REQUEST"),
        };
        Self::new(status, code, format!("the request's {error}"))
    }

    pub(crate) fn not_json() -> Self {
        let message = "the body must be JSON: send `Content-Type: application/json`".to_owned();
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "BAD_REQUEST", message)
    }

    pub(crate) fn busy(message: String) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", message)
        }
    }

    pub(crate) fn unavailable(message: String) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "TEMPORARILY_UNAVAILABLE",
                message,
            )
        }
    }

    pub(crate) fn deadline(message: String) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED", message)
    }

    pub(crate) fn lost(message: String) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "INTERNAL_ERROR", message)
    }

    pub(crate) fn respond(&self) -> Response<AnswerBody> {
        let body = ErrorBody {
            error_code: self.code.to_owned(),
            message: self.message.clone(),
        };
        let text = serde_json::to_vec(&body).expect("two texts serialise");
        let mut response = json(self.status, Bytes::from(text));
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

pub(crate) fn json(status: StatusCode, text: Bytes) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(Some(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The body of an answer. A streamed one passes each piece on as it comes, and holds what the request
/// occupies until it ends or is dropped.
pub(crate) enum AnswerBody {
    Whole(Option<Bytes>),
    Stream {
        body: Incoming,
        held: Option<Box<dyn InFlight>>,
    },
}

impl AnswerBody {
    pub(crate) fn stream(body: Incoming, held: Box<dyn InFlight>) -> Self {
        let mut stream = AnswerBody::Stream {
            body,
            held: Some(held),
        };
        stream.end_if_over();
        stream
    }

    /// The answer to HEAD, which hyper leaves to us on HTTP/2.
    pub(crate) fn left_out(self) -> Self {
        AnswerBody::Whole(None)
    }

    /// An answer with a length ends at its last byte: nobody asks for the end after it.
    fn end_if_over(&mut self) {
        if let AnswerBody::Stream { body, held } = self
            && body.is_end_stream()
            && let Some(held) = held.take()
        {
            held.completed();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            let (body, held) = match &mut *self {
                AnswerBody::Whole(bytes) => {
                    return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b))));
                }
                AnswerBody::Stream { body, held } => (body, held),
            };
            match ready!(Pin::new(body).poll_frame(cx)) {
                None => {
                    if let Some(held) = held.take() {
                        held.completed();
                    }
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    if let Some(held) = held.take() {
                        held.broke();
                    }
                    return Poll::Ready(Some(Err(error)));
                }
                // Trailers end here: nobody asked the client whether it takes them.
                Some(Ok(frame)) if frame.is_data() => {
                    self.end_if_over();
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Ok(_)) => {}
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            AnswerBody::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            AnswerBody::Stream { body, .. } => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_code_a_message_and_the_headers_that_clients_act_on() {
        let response = Refusal::busy("too many".to_owned()).respond();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let AnswerBody::Whole(Some(text)) = response.into_body() else {
            panic!("an error is whole");
        };
        let body: ErrorBody = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(body.error_code, "RESOURCE_EXHAUSTED");
        let response = Refusal::unauthenticated("no token").respond();
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
    }
}
