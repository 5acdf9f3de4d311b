//! An endpoint with everything that is known of it.

use axum::extract::State;
use scheduler_core::{ApiError, SeriesQuery};
use serde::Deserialize;
use shared::api::EndpointDescription;
use shared::api::autoscaler::{Explained, Series};

use super::Api;
use super::auth::{Caller, Query};
use super::body::{Json, Named, Params};
use super::error::Refusal;

pub(super) async fn describe(
    _: Caller<Query>,
    State(api): State<Api>,
    Named(name): Named<String>,
) -> Result<Json<EndpointDescription>, Refusal> {
    let found = api.control.read(move |core| core.describe(&name)).await??;
    Ok(Json(found))
}

#[derive(Deserialize)]
pub(super) struct ExplainParams {
    entity: Option<String>,
}

/// `GET /api/stokehold/v1/endpoints/{name}/explain`.
pub(super) async fn explain(
    _: Caller<Query>,
    State(api): State<Api>,
    Named(name): Named<String>,
    Params(params): Params<ExplainParams>,
) -> Result<Json<Explained>, Refusal> {
    let unix_ms = api.clock.unix_ms();
    let explained = api
        .control
        .read(move |core| core.explain(&name, params.entity.as_deref(), unix_ms));
    Ok(Json(explained.await??))
}

#[derive(Deserialize)]
pub(super) struct SeriesParams {
    entity: Option<String>,
    /// `1s`, `10s` or `1m`.
    resolution: Option<String>,
    /// What ended after this, Unix milliseconds.
    since: Option<u64>,
}

/// `GET /api/stokehold/v1/endpoints/{name}/series`.
pub(super) async fn series(
    _: Caller<Query>,
    State(api): State<Api>,
    Named(name): Named<String>,
    Params(params): Params<SeriesParams>,
) -> Result<Json<Series>, Refusal> {
    let query = SeriesQuery {
        resolution_s: resolution(params.resolution.as_deref().unwrap_or("10s"))?,
        entity: params.entity,
        since_unix_ms: params.since,
    };
    let unix_ms = api.clock.unix_ms();
    let series = api
        .control
        .read(move |core| core.series(&name, &query, unix_ms));
    Ok(Json(series.await??))
}

fn resolution(text: &str) -> Result<u32, ApiError> {
    match text {
        "1s" => Ok(1),
        "10s" => Ok(10),
        "1m" => Ok(60),
        other => {
            let shown: String = other.chars().take(80).collect();
            Err(ApiError::invalid(format!(
                "resolution: expected 1s, 10s or 1m, got {shown:?}"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolution_that_is_not_kept_is_refused_by_name() {
        let known = ["1s", "10s", "1m"].map(|text| resolution(text).expect("known"));
        assert_eq!(known, [1, 10, 60]);
        for text in ["", "60s", "1h", "s"] {
            let refused = resolution(text).expect_err(text);
            assert!(refused.message.starts_with("resolution: "), "{refused}");
        }
    }
}
