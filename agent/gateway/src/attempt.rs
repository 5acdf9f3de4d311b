//! One try of a request at one replica: what is sent, and what can become of it.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use crate::payload::ForwardBody;
use crate::upstream::pool::{Connection, Pool};

/// What became of a try. Only after `Full` and `NotBegun` may the request go to another replica.
pub(crate) enum Attempt {
    Answered(Box<Answered>),
    /// The replica's gateway has no slot.
    Full {
        load: u32,
    },
    /// The replica never saw the request.
    NotBegun {
        reason: String,
    },
    /// The replica was working on it, or may have been.
    Lost {
        reason: String,
    },
}

pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) give_back: GiveBack,
    /// The replica's whole load, where another gateway told it.
    pub(crate) load: Option<u32>,
}

/// A connection in use, to go back to its pool when its answer has ended. Dropped before, it closes.
pub(crate) struct GiveBack {
    pub(crate) pool: Arc<Pool>,
    pub(crate) connection: Connection,
}

impl GiveBack {
    pub(crate) fn reuse(self) {
        self.pool.put(self.connection);
    }
}

/// The request to `path` with headers made for a replica.
pub(crate) fn request(path: Uri, headers: HeaderMap, body: ForwardBody) -> Request<ForwardBody> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    request
}

/// Reads a short answer whole; `None` when it breaks off or is not short.
pub(crate) async fn read_short(body: Incoming) -> Option<Bytes> {
    const SHORT_BYTES: usize = 16 << 10;
    let collected = Limited::new(body, SHORT_BYTES).collect().await.ok()?;
    Some(collected.to_bytes())
}
