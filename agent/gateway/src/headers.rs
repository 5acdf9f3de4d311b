//! What headers cross a gateway. Pure.

use http::header::{
    ALT_SVC, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST,
    HeaderMap, HeaderName, HeaderValue, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
};
use rand::{Rng, RngExt as _};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const SERVED_MODEL_NAME: HeaderName = HeaderName::from_static("served-model-name");

// Between gateways. No client's and no replica's header of this kind passes.
pub(crate) const FULL: HeaderName = HeaderName::from_static("stokehold-full");
pub(crate) const LOAD: HeaderName = HeaderName::from_static("stokehold-load");
pub(crate) const REFUSAL: HeaderName = HeaderName::from_static("stokehold-refusal");
/// The replica never saw the request.
pub(crate) const REFUSAL_NOT_BEGUN: HeaderValue = HeaderValue::from_static("not-begun");
/// The replica died over it.
pub(crate) const REFUSAL_LOST: HeaderValue = HeaderValue::from_static("lost");
const OURS: &str = "stokehold-";

/// As far as anything but the replica itself is concerned, a replica has no name.
const REPLICA_HOST: HeaderValue = HeaderValue::from_static("replica");
const MAX_REQUEST_ID: usize = 128;

/// Makes a client's headers those of the request to a replica: re-serialised, so that nothing a parser
/// could doubt goes on.
pub(crate) fn for_replica(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove_ours(headers);
    for name in [AUTHORIZATION, COOKIE, EXPECT, CONTENT_LENGTH] {
        headers.remove(name);
    }
    headers.insert(HOST, REPLICA_HOST);
}

/// Makes a replica's headers those of the answer to a client or to another gateway. What speaks for the
/// whole host, which all endpoints share, is not the replica's to say.
pub(crate) fn from_replica(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove_ours(headers);
    for name in [
        ALT_SVC,
        SET_COOKIE,
        STRICT_TRANSPORT_SECURITY,
        WWW_AUTHENTICATE,
    ] {
        headers.remove(name);
    }
    headers.remove("clear-site-data");
}

/// Whether the body says that it is JSON. One that says nothing is taken at its best, and says so to
/// the replica from here on.
pub(crate) fn takes_json(headers: &mut HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return true;
    };
    let kind = value.to_str().unwrap_or_default();
    let kind = kind.split_once(';').map_or(kind, |(kind, _)| kind);
    kind.trim().eq_ignore_ascii_case("application/json")
}

/// Makes headers pass the gateway on the way to or from the scheduler.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
    ] {
        headers.remove(name);
    }
}

fn remove_ours(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(OURS))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
}

/// The client's request id if it is one, else a new one.
pub(crate) fn request_id(headers: &HeaderMap, rng: &mut impl Rng) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=MAX_REQUEST_ID).contains(&bytes.len())
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
    };
    if let Some(id) = headers.get(REQUEST_ID).filter(sane) {
        return id.clone();
    }
    let bits: u128 = rng.random();
    HeaderValue::from_str(&format!("{bits:032x}")).expect("hexadecimal digits are a header value")
}

/// The load that another gateway told of its replica.
pub(crate) fn load(headers: &HeaderMap) -> Option<u32> {
    headers.get(LOAD)?.to_str().ok()?.parse().ok()
}

/// The token of `Authorization: Bearer`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let name: HeaderName = name.parse().expect("name");
                (name, HeaderValue::from_str(value).expect("value"))
            })
            .collect()
    }

    #[test]
    fn neither_credentials_nor_headers_of_one_hop_reach_a_replica() {
        let mut sent = headers(&[
            ("authorization", "Bearer secret"),
            ("connection", "keep-alive, x-private"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("expect", "100-continue"),
            ("stokehold-load", "9"),
            ("host", "public.example"),
            ("content-type", "application/json"),
            ("traceparent", "00-a-b-01"),
        ]);
        for_replica(&mut sent);
        let expected = headers(&[
            ("host", "replica"),
            ("content-type", "application/json"),
            ("traceparent", "00-a-b-01"),
        ]);
        assert_eq!(sent, expected);
    }

    #[test]
    fn a_replica_cannot_speak_for_its_gateway() {
        let mut answer = headers(&[
            ("stokehold-full", "1"),
            ("stokehold-load", "0"),
            ("set-cookie", "a=b"),
            ("alt-svc", "h3=\":1\""),
            ("server", "x"),
        ]);
        from_replica(&mut answer);
        assert_eq!(answer, headers(&[("server", "x")]));
    }

    #[test]
    fn a_body_is_json_whatever_the_case_and_parameters_or_when_nothing_is_said() {
        for kind in ["application/json", "Application/JSON; charset=utf-8"] {
            assert!(
                takes_json(&mut headers(&[("content-type", kind)])),
                "{kind}"
            );
        }
        for kind in [
            "text/csv",
            "",
            "application/jsonx",
            "application/x-www-form-urlencoded",
        ] {
            assert!(
                !takes_json(&mut headers(&[("content-type", kind)])),
                "{kind}"
            );
        }
        let mut silent = HeaderMap::new();
        assert!(takes_json(&mut silent));
        assert_eq!(silent[CONTENT_TYPE], "application/json");
    }

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_is_replaced() {
        let mut rng = SmallRng::seed_from_u64(1);
        let kept = request_id(&headers(&[("x-request-id", "ab-12")]), &mut rng);
        assert_eq!(kept, "ab-12");
        let long = "x".repeat(129);
        for bad in ["", "a b", "a\"b", &long] {
            let made = request_id(&headers(&[("x-request-id", bad)]), &mut rng);
            assert_eq!(made.len(), 32, "{bad:?} was kept");
        }
    }

    #[test]
    fn a_bearer_token_is_read_whatever_the_case_of_the_word() {
        assert_eq!(
            bearer(&headers(&[("authorization", "bearer t1")])),
            Some("t1")
        );
        for bad in ["t1", "Basic t1", "Bearer ", "Bearer"] {
            assert_eq!(bearer(&headers(&[("authorization", bad)])), None, "{bad:?}");
        }
        let two = headers(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]);
        let mut doubled = two.clone();
        doubled.append(AUTHORIZATION, HeaderValue::from_static("Bearer c"));
        assert_eq!(bearer(&doubled), None);
    }

    proptest! {
        #[test]
        fn arbitrary_values_never_panic(value in "[ -~]{0,60}") {
            let map = headers(&[("authorization", &value), ("connection", &value), ("stokehold-load", &value)]);
            let _ = (bearer(&map), load(&map));
            for_replica(&mut map.clone());
        }
    }
}
