//! One request on one connection, and what became of it.

use std::error::Error as _;

use http::{Request, Response};
use hyper::body::Incoming;

use super::pool::Connection;
use crate::payload::ForwardBody;

pub(crate) enum Exchanged {
    Answered {
        response: Response<Incoming>,
        connection: Connection,
    },
    /// Not one byte of the request left: the connection had gone stale.
    NeverWritten,
    /// The connection died before an answer began.
    Died {
        /// The other end closed with part of the request unread (exact for Unix sockets only).
        unread: bool,
        reason: String,
    },
}

/// Dropping the future closes the connection, which tells the other end to stop.
pub(crate) async fn exchange(
    mut connection: Connection,
    request: Request<ForwardBody>,
) -> Exchanged {
    let before = connection.meter.reading();
    let mut error = match connection.sender.try_send_request(request).await {
        Ok(response) => {
            return Exchanged::Answered {
                response,
                connection,
            };
        }
        Err(error) => error,
    };
    let after = connection.meter.reading();
    if error.take_message().is_some() || after.written == before.written {
        return Exchanged::NeverWritten;
    }
    let error = error.into_error();
    let reason = match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Exchanged::Died {
        unread: connection.meter.was_reset() && after.read == before.read,
        reason,
    }
}
