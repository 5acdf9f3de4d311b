//! Who calls, and whether that token may.

use std::marker::PhantomData;

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use scheduler_core::ApiError;
use scheduler_core::registry::TokenRecord;
use shared::spec::TokenRole;

use super::Api;
use super::error::Refusal;

/// A role that a handler needs, as a type, so that its signature says so.
pub(super) trait Needs: Send {
    const ROLE: TokenRole;
}

/// See endpoints.
pub(super) struct Query;
/// Change endpoints, models and images; read logs.
pub(super) struct Manage;
/// Tokens and nodes.
pub(super) struct Admin;

impl Needs for Query {
    const ROLE: TokenRole = TokenRole::Query;
}

impl Needs for Manage {
    const ROLE: TokenRole = TokenRole::Manage;
}

impl Needs for Admin {
    const ROLE: TokenRole = TokenRole::Admin;
}

/// A caller whose token has the role `N` or a higher one.
pub(super) struct Caller<N> {
    pub(super) token: TokenRecord,
    needs: PhantomData<N>,
}

impl<N: Needs> FromRequestParts<Api> for Caller<N> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let text = bearer(parts).ok_or_else(|| {
            ApiError::unauthenticated("send a token: `Authorization: Bearer shk_...`")
        })?;
        let known = api
            .control
            .read(move |core| core.registry.authenticate(&text).cloned())
            .await?;
        let token = known.ok_or_else(|| {
            ApiError::unauthenticated("the token is not known here: it is mistyped, or was deleted")
        })?;
        if token.role < N::ROLE {
            return Err(Refusal(ApiError::forbidden(format!(
                "token {} has the role {}, this needs {}",
                token.name,
                token.role.as_str(),
                N::ROLE.as_str()
            ))));
        }
        Ok(Self {
            token,
            needs: PhantomData,
        })
    }
}

fn bearer(parts: &Parts) -> Option<String> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, text) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| text.trim().to_owned())
}
