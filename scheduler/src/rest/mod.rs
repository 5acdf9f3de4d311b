//! The REST API: `/api/2.0/serving-endpoints` in the shapes that Databricks' clients use, and
//! `/api/stokehold/v1` for what is ours alone.
//!
//! What always holds: every answer is JSON (or a stream of JSON lines) and carries `x-request-id`;
//! every error is `{"error_code", "message"}` and says what is wrong and how to mend it; no answer
//! overtakes the request's body ([`unread`]); a handler's signature names the role that it needs ([`auth::Caller`]); no token is ever logged.

mod auth;
mod body;
mod ca;
mod endpoints;
mod error;
mod events;
mod images;
mod join;
mod logs;
mod models;
mod nodes;
pub mod openapi;
mod pools;
mod renew;
mod routes;
mod serving;
mod shape;
mod tokens;
mod unread;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use scheduler_core::ApiError;
use serde_json::json;
use shared::api::{self, certificates};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::authorities::Authorities;
use crate::chunks::Chunks;
use crate::control::{Clock, Handle};
use crate::images::Images;
use crate::room::Room;
use auth::{Caller, Query};
use body::Json;
use error::Refusal;
use routes::Routes;

pub(crate) use tokens::fresh_secret;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What handlers need. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

pub struct Parts {
    pub control: Handle,
    pub chunks: Chunks,
    pub ca: Authorities,
    /// Of the certificates that are given out.
    pub lifetime: Duration,
    pub images: Images,
    /// `host:port` of this API, and of the QUIC listener, as nodes reach them.
    pub http_addresses: Vec<String>,
    pub quic_addresses: Vec<String>,
    pub clock: Clock,
    /// Chunks being received, each held whole in memory until it is checked.
    pub uploads: Semaphore,
    /// Those who follow the events.
    pub followers: Arc<Semaphore>,
    /// Whether the disk takes what requests bring.
    pub room: Room,
    /// Ends streams that would go on for ever.
    pub cancel: CancellationToken,
}

impl Api {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for Api {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Every path of the API, as its router has it.
pub fn paths() -> Vec<String> {
    routes().paths
}

fn routes() -> Routes {
    Routes::new()
        .merge(databricks())
        .nest("/api/stokehold/v1", stokehold())
        .route(
            "/healthz",
            get(async || axum::Json(json!({"status": "ok"}))),
        )
        .route("/.well-known/databricks-config", get(serving::discovery))
}

pub fn router(api: Api) -> Router {
    routes()
        .router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(api.clone(), with_room))
        .layer(middleware::from_fn(unread::drained))
        .layer(middleware::from_fn_with_state(api.clone(), with_bundle_id))
        .layer(middleware::from_fn(with_request_id))
        .with_state(api)
}

fn databricks() -> Routes {
    let endpoints = get(serving::list).post(serving::create);
    let refused = || axum::routing::any(serving::not_implemented);
    let base = "/api/2.0/serving-endpoints";
    let below = |rest: &str| format!("{base}/{{name}}/{rest}");
    let mut router = Routes::new()
        // One of the clients writes the slash; none follows a redirect.
        .route(base, endpoints.clone())
        .route(&format!("{base}/"), endpoints)
        .route(
            &format!("{base}/{{name}}"),
            get(serving::get_one).delete(serving::delete_one),
        )
        .route(&below("config"), put(serving::update_config))
        .route(&below("tags"), patch(serving::patch_tags))
        .route(&below("served-models/{entity}/logs"), get(logs::as_text))
        .route(&below("served-models/{entity}/build-logs"), refused())
        .route("/api/2.0/preview/scim/v2/Me", get(serving::me))
        .route(&format!("{base}/pt"), post(serving::not_implemented))
        .route(&format!("{base}/pt/{{name}}/config"), refused())
        .route("/api/2.0/permissions/serving-endpoints/{id}", refused())
        .route(
            "/api/2.0/permissions/serving-endpoints/{id}/permissionLevels",
            refused(),
        );
    for unsupported in [
        "rate-limits",
        "ai-gateway",
        "notifications",
        "telemetry-config",
        "metrics",
        "openapi",
    ] {
        router = router.route(&below(unsupported), refused());
    }
    router
}

fn stokehold() -> Routes {
    Routes::new()
        .route("/join", post(join::join))
        .route("/renew", post(renew::renew))
        .route("/ca", get(ca::status))
        .route("/ca/bundle", get(ca::bundle))
        .route("/ca/rotate", post(ca::rotate))
        .route("/ca/finish", post(ca::finish))
        .route("/openapi.json", get(openapi::serve))
        .route("/version", get(version))
        .route("/whoami", get(whoami))
        .route("/events", get(events::list))
        .route("/pools", get(pools::list))
        .route("/endpoints/{name}", get(endpoints::describe))
        .route("/endpoints/{name}/explain", get(endpoints::explain))
        .route("/endpoints/{name}/series", get(endpoints::series))
        .route("/endpoints/{name}/logs", get(logs::as_lines))
        .route("/chunks/missing", post(models::missing_chunks))
        .route("/chunks/{digest}", put(models::put_chunk))
        .route("/manifests", post(models::put_manifest))
        .route("/models", get(models::list))
        .route(
            "/models/{name}",
            get(models::versions).delete(models::delete_version),
        )
        .route("/models/{name}/versions", post(models::register))
        .route("/models/{name}/aliases/{alias}", put(models::set_alias))
        .route(
            "/images",
            get(images::list)
                .post(images::register)
                .delete(images::delete),
        )
        .route("/images/pull", post(images::pull))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{name}", get(nodes::describe).delete(nodes::remove))
        .route("/nodes/{name}/revoke", post(nodes::revoke))
        .route(
            "/node-tokens",
            get(nodes::list_tokens).post(nodes::create_token),
        )
        .route("/node-tokens/{id}", delete(nodes::delete_token))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{id}", delete(tokens::delete))
}

async fn version(_: Caller<Query>, State(api): State<Api>) -> Json<api::Version> {
    Json(api::Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: api.ca.cluster().clone(),
        epoch: api.control.epoch().0,
    })
}

async fn whoami(caller: Caller<Query>) -> Json<api::WhoAmI> {
    Json(api::WhoAmI {
        id: caller.token.id,
        name: caller.token.name,
        role: caller.token.role,
    })
}

async fn no_route(method: Method, uri: Uri) -> Refusal {
    Refusal(ApiError::no_route(format!(
        "there is no {method} {}",
        uri.path()
    )))
}

/// On a full disk what would fill it further is refused before it is begun. Deleting makes room, a
/// question takes none, and sending a node away must always be possible.
async fn with_room(State(api): State<Api>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let brings = matches!(
        *request.method(),
        Method::POST | Method::PUT | Method::PATCH
    );
    let takes_none = path.ends_with("/chunks/missing") || path.ends_with("/revoke");
    if brings && !takes_none {
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        if let Err(short) = api.room.for_change(length.unwrap_or(0)) {
            return Refusal(ApiError::no_room(format!(
                "the scheduler has {short}. Nothing was changed; deleting still works"
            )))
            .into_response();
        }
    }
    next.run(request).await
}

/// `Allow` is added by the router.
async fn no_method(method: Method, uri: Uri) -> Response {
    let error = ApiError::no_route(format!("there is no {method} {}", uri.path()));
    let mut response = Refusal(error).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// Says which authorities are trusted now, so that whoever keeps a copy knows when it is old.
async fn with_bundle_id(State(api): State<Api>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let all = api.ca.list().into_iter().map(|it| it.sha256);
    if let Ok(id) = HeaderValue::from_str(&certificates::bundle_id(all)) {
        let name = HeaderName::from_static(certificates::BUNDLE_HEADER);
        response.headers_mut().insert(name, id);
    }
    response
}

/// Takes the caller's request id, or makes one, and gives it back with the answer.
async fn with_request_id(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    debug!(%method, path, status = response.status().as_u16(), id = ?id, "answered");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| {
        let text = id.as_bytes();
        (1..=64).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        let text = format!("{:016x}", rand::random::<u64>());
        HeaderValue::from_str(&text).expect("hexadecimal digits are a header's value")
    })
}

/// A stream of JSON, one object a line.
fn ndjson(body: axum::body::Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
