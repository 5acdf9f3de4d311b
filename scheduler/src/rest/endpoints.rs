//! An endpoint with everything that is known of it.

use axum::extract::State;
use shared::api::EndpointDescription;

use super::Api;
use super::auth::{Caller, Query};
use super::body::{Json, Named};
use super::error::Refusal;

pub(super) async fn describe(
    _: Caller<Query>,
    State(api): State<Api>,
    Named(name): Named<String>,
) -> Result<Json<EndpointDescription>, Refusal> {
    let found = api.control.read(move |core| core.describe(&name)).await??;
    Ok(Json(found))
}
