//! What can go wrong between this program and a server, and what the user reads about it.

use shared::api::ErrorBody;

/// An error answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiFailure {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) request_id: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot reach {url}{hint}")]
    Unreachable {
        url: String,
        hint: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{url} did not answer in time")]
    TimedOut {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the connection to {url} broke")]
    Broken {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{}", .0.message)]
    Api(ApiFailure),
    #[error(
        "{url} answered something that this program does not understand: are both of one version?"
    )]
    NotUnderstood {
        url: String,
        #[source]
        source: serde_json::Error,
    },
}

impl ClientError {
    pub(crate) fn of_transport(url: &str, source: reqwest::Error, ca: &str) -> Self {
        let url = url.to_owned();
        // The URL is in our own message already.
        let source = source.without_url();
        if source.is_connect() {
            let hint = tls_hint(&source, ca);
            return Self::Unreachable { url, hint, source };
        }
        if source.is_timeout() {
            return Self::TimedOut { url, source };
        }
        Self::Broken { url, source }
    }

    /// Reads an error answer; bodies that are no `{"error_code","message"}` are quoted.
    pub(crate) fn of_answer(status: u16, request_id: Option<String>, body: &[u8]) -> Self {
        let (code, message) = match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => (body.error_code, body.message),
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let quoted: String = text
                    .chars()
                    .filter(|c| !c.is_control() || *c == '\n')
                    .take(300)
                    .collect();
                let message = if quoted.trim().is_empty() {
                    format!("the server answered HTTP {status} without a reason")
                } else {
                    format!("the server answered HTTP {status}: {}", quoted.trim())
                };
                ("UNKNOWN".into(), message)
            }
        };
        Self::Api(ApiFailure {
            status,
            code,
            message,
            request_id,
        })
    }

    /// What the server answered, where it did.
    pub(crate) fn answer(&self) -> Option<&ApiFailure> {
        match self {
            Self::Api(failure) => Some(failure),
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::NotUnderstood { .. } => None,
        }
    }

    fn status(&self) -> Option<u16> {
        self.answer().map(|failure| failure.status)
    }

    /// The server is not there, or does not let us in.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. }
        ) || matches!(self.status(), Some(401 | 403))
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether the same request may succeed a moment later, provided that repeating it is harmless.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. }
        ) || matches!(self.status(), Some(429 | 502 | 503 | 504))
    }

    /// The second line under the message.
    pub(crate) fn detail(&self) -> Option<String> {
        let Self::Api(failure) = self else {
            return None;
        };
        let mut text = format!("{} (HTTP {})", failure.code, failure.status);
        if let Some(id) = &failure.request_id {
            text.push_str(&format!(", request {id}"));
        }
        Some(text)
    }
}

/// A certificate that does not fit is the commonest cause, and rustls's own words are short.
fn tls_hint(error: &reqwest::Error, ca: &str) -> String {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(this) = cause {
        let text = this.to_string();
        if text.contains("UnknownIssuer") || text.contains("BadSignature") {
            return format!(": its certificate was not signed by {ca}");
        }
        if text.contains("NotValidForName") {
            return ": its certificate is not for that host name".into();
        }
        cause = this.source();
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_is_read_and_anything_else_is_quoted() {
        let body = br#"{"error_code":"RESOURCE_CONFLICT","message":"an update is running"}"#;
        let error = ClientError::of_answer(409, Some("r7".into()), body);
        assert_eq!(error.to_string(), "an update is running");
        assert_eq!(
            error.detail().as_deref(),
            Some("RESOURCE_CONFLICT (HTTP 409), request r7")
        );
        let proxy = ClientError::of_answer(502, None, b"<h1>bad\x1b gateway</h1>");
        assert_eq!(
            proxy.to_string(),
            "the server answered HTTP 502: <h1>bad gateway</h1>"
        );
        let empty = ClientError::of_answer(500, None, b"");
        assert_eq!(
            empty.to_string(),
            "the server answered HTTP 500 without a reason"
        );
    }

    #[test]
    fn only_what_may_pass_is_worth_another_try() {
        let passing: Vec<bool> = [400, 401, 404, 409, 429, 500, 503]
            .map(|status| ClientError::of_answer(status, None, b"").is_passing())
            .to_vec();
        assert_eq!(passing, [false, false, false, false, true, false, true]);
    }
}
