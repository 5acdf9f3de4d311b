//! Request bodies, bounded in size and time, and JSON whose errors name the field.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use scheduler_core::ApiError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::mistake::{self, Notation};

use super::Api;
use super::error::Refusal;

/// Of management requests.
pub(super) const MAX_JSON_BYTES: usize = 1 << 20;
/// Of a body that is too large so much more is read before it is refused: clients that find the
/// connection closed while they write send all of it again.
pub(super) const MAX_DRAINED_BYTES: usize = 64 << 20;
/// Between two pieces of a body.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// For a whole body: 32 MiB over a slow line.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(600);

/// A JSON body, in or out. Going in, the content type is not looked at: `curl -d` sends another.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned> FromRequest<Api> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Api) -> Result<Self, Refusal> {
        let bytes = read(request.into_body(), MAX_JSON_BYTES).await?;
        Ok(Json(parse(&bytes)?))
    }
}

/// A JSON body whose unknown fields are passed over, as clients send some; but not those that are a known
/// one misspelt, whose sender would wonder.
pub(super) struct Lenient<T>(pub(super) T);

impl<T: DeserializeOwned + Default + Serialize> FromRequest<Api> for Lenient<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Api) -> Result<Self, Refusal> {
        let bytes = read(request.into_body(), MAX_JSON_BYTES).await?;
        let value = parse(&bytes)?;
        misspelt::<T>(&bytes)?;
        Ok(Self(value))
    }
}

fn misspelt<T: Default + Serialize>(bytes: &[u8]) -> Result<(), Refusal> {
    let (Ok(serde_json::Value::Object(known)), Ok(serde_json::Value::Object(sent))) = (
        serde_json::to_value(T::default()),
        serde_json::from_slice(bytes),
    ) else {
        return Ok(());
    };
    let unknown = sent.keys().filter(|field| !known.contains_key(*field));
    for field in unknown {
        if let Some(meant) = mistake::misspelt(field, known.keys().map(String::as_str)) {
            return Err(Refusal(ApiError::invalid(format!(
                "the request's body: there is no field `{field}`: did you mean `{meant}`?"
            ))));
        }
    }
    Ok(())
}

/// The query's parameters; unknown ones are ignored, as some clients add their own.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Refusal> {
        let Query(params) = Query::try_from_uri(&parts.uri)
            .map_err(|e| Refusal(ApiError::invalid(format!("query: {}", e.body_text()))))?;
        Ok(Self(params))
    }
}

/// The path's parameters, each a valid name of its kind.
pub(super) struct Named<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Api> for Named<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let Path(params) = Path::from_request_parts(parts, api)
            .await
            .map_err(|e| Refusal(ApiError::invalid(format!("path: {}", e.body_text()))))?;
        Ok(Self(params))
    }
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read(body: Body, limit: usize) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(WHOLE_TIMEOUT, read_pieces(body, limit)).await {
        Ok(read) => read,
        Err(_) => Err(Refusal(ApiError::bad_request(format!(
            "the request's body took longer than {WHOLE_TIMEOUT:?}"
        )))),
    }
}

async fn read_pieces(mut body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::new();
    let mut len = 0usize;
    loop {
        let frame = match tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                let problem = format!("the request's body ended early: {error}");
                return Err(Refusal(ApiError::bad_request(problem)));
            }
            Ok(None) if len > limit => return Err(too_large(limit)),
            Ok(None) => return Ok(whole.freeze()),
            Err(_) => {
                let problem = format!("no byte of the request's body came in {IDLE_TIMEOUT:?}");
                return Err(Refusal(ApiError::bad_request(problem)));
            }
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        len = len.saturating_add(data.len());
        if len <= limit {
            whole.extend_from_slice(&data);
        } else if len > MAX_DRAINED_BYTES {
            return Err(too_large(limit));
        } else {
            whole = BytesMut::new();
        }
    }
}

fn too_large(limit: usize) -> Refusal {
    Refusal(ApiError::too_large(format!(
        "the request's body is over the limit of {limit} bytes"
    )))
}

/// A wrong field is named with its path.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    super::shape::check(bytes)?;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        wrong(&path, &error.into_inner())
    })?;
    reader
        .end()
        .map_err(|e| Refusal(ApiError::invalid(format!("the request's body: {e}"))))?;
    Ok(value)
}

/// What is wrong in a body, and where: the field's path, what was found, what is wanted.
pub(super) fn wrong(path: &str, problem: &serde_json::Error) -> Refusal {
    let said = problem.to_string();
    let whole = path == "." || path == "?";
    let place = if whole { "the request's body" } else { path };
    if let Some((written, known)) = mistake::unknown_field(&said) {
        // The path is the object's, or the field's own.
        let object = path
            .strip_suffix(written)
            .map_or(place, |p| p.trim_end_matches('.'));
        let object = if object.is_empty() {
            "the request's body"
        } else {
            object
        };
        let hint = mistake::of_unknown(written, &known);
        return Refusal(ApiError::invalid(format!(
            "{object}: there is no field `{written}`: {hint}"
        )));
    }
    if problem.is_syntax() || problem.is_eof() {
        return Refusal(ApiError::invalid(format!(
            "{place}: this is not JSON: {problem}"
        )));
    }
    let key = path.rsplit('.').next().unwrap_or(path);
    let key = key.split('[').next().unwrap_or(key);
    Refusal(ApiError::invalid(format!(
        "{place}: {}",
        mistake::of_value(key, &said, Notation::Json)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::api::serving::CreateEndpoint;

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_and_refused_above() {
        let read_of = |len: usize| read(Body::from(vec![b'x'; len]), 10);
        assert_eq!(read_of(10).await.expect("fits").len(), 10);
        assert_eq!(read_of(11).await.expect_err("too large").0.status, 413);
    }

    #[test]
    fn of_fields_that_are_passed_over_a_misspelt_one_is_told() {
        let check = |body: &str| misspelt::<CreateEndpoint>(body.as_bytes());
        let refused = check(r#"{"name":"e","confg":{}}"#).expect_err("misspelt").0;
        assert!(
            refused.message.contains("did you mean `config`?"),
            "{refused}"
        );
        assert!(check(r#"{"name":"e","config":null,"workspace_url":"x"}"#).is_ok());
    }

    #[test]
    fn a_wrong_field_is_named_with_its_path() {
        let body =
            br#"{"name":"e","config":{"served_entities":[{"min_provisioned_concurrency":"x"}]}}"#;
        let refused = parse::<CreateEndpoint>(body).expect_err("a text for a number");
        let message = &refused.0.message;
        assert!(
            message.starts_with("config.served_entities[0].min_provisioned_concurrency:"),
            "{message}"
        );
        assert!(
            message.ends_with(
                "found the text \"x\", expected a whole number, such as \
                 \"min_provisioned_concurrency\": 30"
            ),
            "{message}"
        );
        let body =
            br#"{"name":"e","config":{"served_entities":[{"stokehold":{"min_replica":1}}]}}"#;
        let refused = parse::<CreateEndpoint>(body)
            .expect_err("a misspelt field")
            .0;
        assert_eq!(
            refused.message,
            "config.served_entities[0].stokehold: there is no field `min_replica`: did you mean \
             `min_replicas`?"
        );
        let refused = parse::<CreateEndpoint>(b"{\"name\": e}")
            .expect_err("no JSON")
            .0;
        assert!(refused.message.contains("this is not JSON"), "{refused}");
        let refused = parse::<CreateEndpoint>(b"{} x").expect_err("no name").0;
        assert!(refused.message.contains("name"), "{refused}");
        let refused = parse::<CreateEndpoint>(br#"{"name":"e"} x"#)
            .expect_err("trailing")
            .0;
        assert!(refused.message.contains("trailing"), "{refused}");
    }
}
