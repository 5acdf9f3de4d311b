//! `/api/2.0/serving-endpoints` and the calls that its clients make beside it.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use scheduler_core::registry::TokenRecord;
use scheduler_core::{ApiError, Effects};
use serde_json::{Value, json};
use shared::api::serving::{ConfigInput, CreateEndpoint, Detailed, EndpointList};
use shared::ids::ClusterId;
use shared::spec::TokenRole;

use super::Api;
use super::auth::{Caller, Manage, Query};
use super::body::{self, Json, Lenient, Named};
use super::error::Refusal;

pub(super) async fn list(
    _: Caller<Query>,
    State(api): State<Api>,
) -> Result<Json<EndpointList>, Refusal> {
    let endpoints = api.control.read(|core| core.list_endpoints()).await?;
    Ok(Json(EndpointList { endpoints }))
}

pub(super) async fn create(
    caller: Caller<Manage>,
    State(api): State<Api>,
    Lenient(input): Lenient<CreateEndpoint>,
) -> Result<Json<Detailed>, Refusal> {
    have_images(&api, input.config.clone()).await?;
    let creator = caller.token.name.clone();
    let created = api
        .control
        .decide(move |core, ctx| outcome(core.create_endpoint(input, &creator, ctx)))
        .await??;
    Ok(Json(seen_by(&caller.token, created)))
}

pub(super) async fn get_one(
    caller: Caller<Query>,
    State(api): State<Api>,
    Named(name): Named<String>,
) -> Result<Json<Detailed>, Refusal> {
    let found = api
        .control
        .read(move |core| core.get_endpoint(&name))
        .await??;
    Ok(Json(seen_by(&caller.token, found)))
}

pub(super) async fn update_config(
    caller: Caller<Manage>,
    State(api): State<Api>,
    Named(name): Named<String>,
    Lenient(input): Lenient<ConfigInput>,
) -> Result<Json<Detailed>, Refusal> {
    have_images(&api, Some(input.clone())).await?;
    let updated = api
        .control
        .decide(move |core, ctx| outcome(core.update_config(&name, input, ctx)))
        .await??;
    Ok(Json(seen_by(&caller.token, updated)))
}

/// Images that a registry should give are asked for before anything is made that needs them. Imported ones
/// may come later.
async fn have_images(api: &Api, config: Option<ConfigInput>) -> Result<(), Refusal> {
    let Some(config) = config else {
        return Ok(());
    };
    let needed = api.control.read(move |core| {
        let entities = config.served_entities.iter().flatten();
        core.images_needed(entities.chain(config.served_models.iter().flatten()))
    });
    Ok(api.images.ensure(needed.await?).await?)
}

/// One of the clients sends no body at all, and is told the tags as they are.
pub(super) async fn patch_tags(
    _: Caller<Manage>,
    State(api): State<Api>,
    Named(name): Named<String>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let bytes = body::read(request.into_body(), body::MAX_JSON_BYTES).await?;
    let change: Value = match bytes.trim_ascii() {
        [] => Value::Null,
        some => body::parse(some)?,
    };
    let found = api
        .control
        .read(move |core| core.get_endpoint(&name))
        .await??;
    let changes = ["add_tags", "delete_tags"].iter().any(|field| {
        let list = change.get(field).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    });
    if changes {
        return Err(Refusal(ApiError::not_implemented(
            "the tags of an endpoint cannot be changed here: give them when it is made",
        )));
    }
    Ok(Json(json!({ "tags": found.tags })))
}

/// The answer must have a JSON body: one of the clients parses it.
pub(super) async fn delete_one(
    _: Caller<Manage>,
    State(api): State<Api>,
    Named(name): Named<String>,
) -> Result<Json<Value>, Refusal> {
    api.control
        .decide(move |core, ctx| {
            let deleted = core.delete_endpoint(&name, ctx);
            outcome(deleted.map(|effects| ((), effects)))
        })
        .await??;
    Ok(Json(json!({})))
}

/// Asked for without a token before every call of some clients, so it must be cheap.
pub(super) async fn discovery(State(api): State<Api>) -> Json<Value> {
    Json(json!({
        "workspace_id": workspace_id(api.ca.cluster()),
        "oidc_endpoint": "",
    }))
}

/// Who the token stands for, in SCIM's words.
pub(super) async fn me(caller: Caller<Query>, State(api): State<Api>) -> (HeaderMap, Json<Value>) {
    let TokenRecord { id, name, .. } = caller.token;
    let mut headers = HeaderMap::new();
    let workspace = workspace_id(api.ca.cluster());
    if let Ok(workspace) = workspace.parse() {
        headers.insert("x-databricks-org-id", workspace);
    }
    let body = json!({
        "id": id,
        "userName": name,
        "displayName": name,
        "active": true,
        "emails": [],
        "groups": [],
    });
    (headers, Json(body))
}

pub(super) async fn not_implemented(_: Caller<Query>, uri: axum::http::Uri) -> Refusal {
    Refusal(ApiError::not_implemented(format!(
        "{} is not supported by Stokehold",
        uri.path()
    )))
}

/// Splits a result into what the caller gets and what the fleet does.
fn outcome<T>(result: Result<(T, Effects), ApiError>) -> (Result<T, ApiError>, Effects) {
    match result {
        Ok((value, effects)) => (Ok(value), effects),
        Err(error) => (Err(error), Effects::default()),
    }
}

fn seen_by(token: &TokenRecord, mut endpoint: Detailed) -> Detailed {
    let level = match token.role {
        TokenRole::Query => "CAN_QUERY",
        TokenRole::Manage | TokenRole::Admin => "CAN_MANAGE",
    };
    level.clone_into(&mut endpoint.permission_level);
    endpoint
}

/// Clients take it for a decimal number.
fn workspace_id(cluster: &ClusterId) -> String {
    let bits = u64::from_str_radix(&cluster.as_str()[..15], 16).unwrap_or_default();
    bits.to_string()
}
