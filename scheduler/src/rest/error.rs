//! Refusals as HTTP answers.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use daemon::telemetry::Chain;
use scheduler_core::ApiError;
use shared::api::ErrorBody;
use tracing::error;

use crate::chunks::{CollectError, ManifestError};
use crate::control::Stopping;

/// An [`ApiError`] on its way out.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(error) = self;
        let status =
            StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = ErrorBody {
            error_code: error.code.to_owned(),
            message: error.message,
        };
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<Stopping> for Refusal {
    fn from(_: Stopping) -> Self {
        Self(ApiError::unavailable(
            "the scheduler is stopping: ask again in a moment",
        ))
    }
}

impl From<ManifestError> for Refusal {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::NotFound { .. } => Self(ApiError::not_found(error.to_string())),
            ManifestError::Get { .. } | ManifestError::Invalid { .. } => internal(&error),
        }
    }
}

impl From<CollectError> for Refusal {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Stopping(stopping) => stopping.into(),
            CollectError::Store(_) => internal(&error),
        }
    }
}

/// A failure of our own: logged whole, since a person must look; the caller is told what failed.
pub(super) fn internal(failure: &(dyn std::error::Error + 'static)) -> Refusal {
    error!(error = %Chain(failure), "request failed");
    Refusal(ApiError::internal(Chain(failure).to_string()))
}

/// A value in the path or the query that is no valid name.
pub(super) fn invalid(field: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal(ApiError::invalid(format!("{field}: {error}")))
}
