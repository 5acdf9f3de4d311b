//! The listener for clients: which route, who asks.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use shared::ids::{ClusterId, EndpointName, EntityName};

use crate::answer::{AnswerBody, Refusal, json};
use crate::forward::{self, Target};
use crate::gateway::State;
use crate::headers;
use crate::metrics::Turned;

/// A route has at most five; what has more is not split to its end.
const MAX_SEGMENTS: usize = 8;
/// Path and query together.
const MAX_URI_BYTES: usize = 8 << 10;

pub(crate) async fn serve(
    state: Arc<State>,
    mut request: Request<Incoming>,
) -> Response<AnswerBody> {
    let id = headers::request_id(request.headers(), &mut rand::rng());
    // Replicas and the scheduler see the same id.
    request
        .headers_mut()
        .insert(headers::REQUEST_ID, id.clone());
    let is_head = request.method() == Method::HEAD;
    let mut response = route(&state, request).await;
    if is_head {
        response = response.map(AnswerBody::left_out);
    }
    response.headers_mut().insert(headers::REQUEST_ID, id);
    response
}

async fn route(state: &Arc<State>, request: Request<Incoming>) -> Response<AnswerBody> {
    let uri = request.uri();
    if uri
        .path_and_query()
        .is_some_and(|p| p.as_str().len() > MAX_URI_BYTES)
    {
        return Refusal::uri_too_long().respond();
    }
    match Route::of(uri.path()) {
        Route::Health => json(StatusCode::OK, Bytes::from_static(b"{\"status\":\"ok\"}")),
        Route::WellKnown => well_known(&state.cluster),
        Route::Management => state.management.pass(request).await,
        Route::Invoke(target) => invoke(state, &target, request).await,
        Route::BadName(refusal) => refusal.respond(),
        Route::Unknown => {
            state.metrics.turned_away(Turned::no_route);
            Refusal::no_route(uri.path()).respond()
        }
    }
}

enum Route {
    Health,
    WellKnown,
    Management,
    Invoke(Target),
    /// The route exists, nothing of that name can.
    BadName(Refusal),
    Unknown,
}

impl Route {
    fn of(path: &str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments: Vec<&str> = path.splitn(MAX_SEGMENTS, '/').collect();
        let segments = match segments.as_slice() {
            // With a slash at the end it is the same route.
            [route @ .., ""] => route,
            route => route,
        };
        match segments {
            ["healthz"] => Route::Health,
            [".well-known", "databricks-config"] => Route::WellKnown,
            ["api", ..] => Route::Management,
            ["serving-endpoints", endpoint, "invocations"] => Self::invoke(endpoint, None),
            [
                "serving-endpoints",
                endpoint,
                "served-models",
                entity,
                "invocations",
            ] => Self::invoke(endpoint, Some(entity)),
            _ => Route::Unknown,
        }
    }

    fn invoke(endpoint: &str, entity: Option<&str>) -> Self {
        let parsed = EndpointName::parse(endpoint).and_then(|endpoint| {
            let entity = entity.map(EntityName::parse).transpose()?;
            Ok(Target { endpoint, entity })
        });
        match parsed {
            Ok(target) => Route::Invoke(target),
            Err(_) => {
                let shown: String = endpoint.chars().take(80).collect();
                Route::BadName(Refusal::not_found(format!("endpoint {shown:?}")))
            }
        }
    }
}

async fn invoke(
    state: &Arc<State>,
    target: &Target,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    if request.method() != Method::POST {
        return forward::refuse(state, &Refusal::wrong_method(&Method::POST), request).await;
    }
    if let Err(refusal) = authenticate(state, &request) {
        state.metrics.turned_away(Turned::unauthenticated);
        return forward::refuse(state, &refusal, request).await;
    }
    forward::serve(state, target, request).await
}

/// Every role may call endpoints, so a token that is known may.
fn authenticate(state: &State, request: &Request<Incoming>) -> Result<(), Refusal> {
    let Some(token) = headers::bearer(request.headers()) else {
        return Err(Refusal::unauthenticated("no bearer token was sent"));
    };
    let Some(table) = state.table() else {
        return Err(Refusal::unavailable(
            "this gateway has no routes yet".to_owned(),
        ));
    };
    match table.role_of(token) {
        Some(_) => Ok(()),
        None => Err(Refusal::unauthenticated("the bearer token is not valid")),
    }
}

/// Asked by SDKs before each call, without a token. The id must be digits.
fn well_known(cluster: &ClusterId) -> Response<AnswerBody> {
    let text = format!(
        "{{\"workspace_id\":\"{}\",\"oidc_endpoint\":\"\"}}",
        workspace_id(cluster)
    );
    let mut response = json(StatusCode::OK, Bytes::from(text));
    response.headers_mut().insert(
        http::header::CACHE_CONTROL,
        HeaderValue::from_static("no-store"),
    );
    response
}

/// The first 52 bits of the cluster's id: a number that every client's JSON can hold.
fn workspace_id(cluster: &ClusterId) -> u64 {
    let digits = &cluster.as_str()[..13];
    u64::from_str_radix(digits, 16).expect("a cluster's id is hexadecimal")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entity_is_reached_by_its_own_route() {
        let Route::Invoke(target) =
            Route::of("/serving-endpoints/iris/served-models/iris-2/invocations")
        else {
            panic!("an invocation");
        };
        assert_eq!(target.endpoint.as_str(), "iris");
        assert_eq!(target.entity.expect("named").as_str(), "iris-2");
    }

    #[test]
    fn a_name_that_cannot_exist_is_not_found_and_other_paths_are_no_routes() {
        assert!(matches!(
            Route::of("/serving-endpoints/a%20b/invocations"),
            Route::BadName(_)
        ));
        for path in [
            "/",
            "/serving-endpoints",
            "/serving-endpoints/iris",
            "/oidc/v1/token",
            "/peer/v1/replicas/x/invoke",
            "/serving-endpoints/iris/invocations/..",
            "//serving-endpoints/iris/invocations",
        ] {
            assert!(matches!(Route::of(path), Route::Unknown), "{path}");
        }
        assert!(matches!(
            Route::of("/api/2.0/serving-endpoints/"),
            Route::Management
        ));
    }

    #[test]
    fn a_slash_at_the_end_changes_nothing() {
        for path in [
            "/serving-endpoints/iris/invocations/",
            "/serving-endpoints/iris/served-models/iris-2/invocations/",
        ] {
            assert!(matches!(Route::of(path), Route::Invoke(_)), "{path}");
        }
    }

    #[test]
    fn a_workspace_id_is_digits() {
        let id = workspace_id(&ClusterId::from_bits(u128::MAX));
        assert_eq!(id, (1 << 52) - 1);
    }

    proptest! {
        #[test]
        fn any_path_has_a_route(path in "\\PC{0,80}") {
            let _ = Route::of(&path);
        }
    }
}
