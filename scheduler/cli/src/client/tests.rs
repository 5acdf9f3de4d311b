//! Against a server in this process that answers what a test tells it to.

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use shared::api::Version;

use super::*;

/// Answers every request with this status and body, and the request's own `authorization` header in
/// `x-seen`.
async fn server(status: u16, body: &'static str) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(move |_: Request<Incoming>| async move {
                let answer = Response::builder()
                    .status(status)
                    .header("x-request-id", "req-1")
                    .body(Full::new(Bytes::from_static(body.as_bytes())));
                Ok::<_, Infallible>(answer.expect("an answer"))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    address
}

fn client(address: SocketAddr) -> Client {
    daemon::tls::install_crypto_provider();
    Client::new(&format!("http://{address}"), None, None).expect("client")
}

#[tokio::test]
async fn an_error_answer_keeps_its_code_message_and_request_id() {
    let body = r#"{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"no endpoint is named iris"}"#;
    let client = client(server(404, body).await);
    let error = client
        .call::<Version>(Call::get("/api/stokehold/v1/version"))
        .await
        .expect_err("404");
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "no endpoint is named iris");
    assert_eq!(
        error.detail().as_deref(),
        Some("RESOURCE_DOES_NOT_EXIST (HTTP 404), request req-1")
    );
}

#[tokio::test]
async fn a_refused_token_counts_as_not_reached() {
    let body = r#"{"error_code":"UNAUTHENTICATED","message":"the token is not known"}"#;
    let client = client(server(401, body).await);
    let error = client.done(Call::get("/x")).await.expect_err("401");
    assert!(error.is_unreachable());
}

#[tokio::test]
async fn an_answer_of_another_shape_is_not_understood() {
    let client = client(server(200, r#"{"ok":true}"#).await);
    let error = client
        .call::<Version>(Call::get("/x"))
        .await
        .expect_err("another shape");
    assert!(
        matches!(error, ClientError::NotUnderstood { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable_and_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    drop(listener);
    let error = client(address)
        .done(Call::get("/x"))
        .await
        .expect_err("nobody listens");
    assert!(error.is_unreachable());
    assert_eq!(error.to_string(), format!("cannot reach http://{address}"));
}

#[test]
fn a_token_never_goes_over_plain_http_to_another_machine() {
    assert!(check_address("http://10.0.0.1:7443").is_err());
    assert!(check_address("http://127.0.0.1:7443").is_ok());
    assert!(check_address("https://10.0.0.1:7443").is_ok());
    assert!(check_address("10.0.0.1:7443").is_err());
    assert!(check_address("ftp://x").is_err());
}
