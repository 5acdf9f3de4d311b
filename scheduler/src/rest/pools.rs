//! The warm pools: how many nodes should stand ready, and why.

use axum::extract::State;
use shared::api::autoscaler::Pools;

use super::Api;
use super::auth::{Caller, Query};
use super::body::Json;
use super::error::Refusal;

/// `GET /api/stokehold/v1/pools`.
pub(super) async fn list(_: Caller<Query>, State(api): State<Api>) -> Result<Json<Pools>, Refusal> {
    Ok(Json(api.control.read(|core| core.pools()).await?))
}
