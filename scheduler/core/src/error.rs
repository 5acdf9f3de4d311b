//! Refusals of the REST API: status, code and a message that says what, where and how to mend it.

use crate::store_op::RecordTooLarge;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
}

impl ApiError {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    /// A field that is wrong; the message names it.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "INVALID_PARAMETER_VALUE", message)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BAD_REQUEST", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "RESOURCE_DOES_NOT_EXIST", message)
    }

    pub fn no_route(message: impl Into<String>) -> Self {
        Self::new(404, "ENDPOINT_NOT_FOUND", message)
    }

    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(400, "RESOURCE_ALREADY_EXISTS", message)
    }

    /// Something else is under way, or holds what was to be deleted.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "RESOURCE_CONFLICT", message)
    }

    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(401, "UNAUTHENTICATED", message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "PERMISSION_DENIED", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "INVALID_PARAMETER_VALUE", message)
    }

    /// Asked again too soon.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self::new(429, "REQUEST_LIMIT_EXCEEDED", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "TEMPORARILY_UNAVAILABLE", message)
    }

    /// The disk is full.
    pub fn no_room(message: impl Into<String>) -> Self {
        Self::new(507, "INSUFFICIENT_STORAGE", message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "INTERNAL_ERROR", message)
    }

    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NOT_IMPLEMENTED", message)
    }
}

impl From<RecordTooLarge> for ApiError {
    fn from(error: RecordTooLarge) -> Self {
        ApiError::too_large(format!(
            "{error}: shorten descriptions, tags or environment variables"
        ))
    }
}
