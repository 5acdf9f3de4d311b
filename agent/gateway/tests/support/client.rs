//! A client of tests: one TLS connection a call.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use daemon::identity::Identity;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Request, StatusCode};
use http_body::Body;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Node, TOKEN};

pub type ClientBody = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn error_code(&self) -> String {
        let value: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
        value["error_code"].as_str().expect("error_code").to_owned()
    }
}

pub fn whole(bytes: impl Into<Bytes>) -> ClientBody {
    Full::new(bytes.into()).boxed_unsync()
}

pub async fn tls(node: &Node, alpn: &[u8]) -> TlsStream<TcpStream> {
    tls_to(node.client_port, &node.identity, alpn).await
}

pub async fn tls_to(port: u16, identity: &Identity, alpn: &[u8]) -> TlsStream<TcpStream> {
    let mut config = daemon::tls::https_client(&identity.authorities).expect("TLS");
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("connected");
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").expect("name"), stream)
        .await
        .expect("TLS")
}

pub fn post(path: &str, body: ClientBody) -> Request<ClientBody> {
    Request::post(path)
        .header(HOST, "localhost")
        .header(AUTHORIZATION, format!("Bearer {TOKEN}"))
        .body(body)
        .expect("request")
}

pub fn invoke(text: &str) -> Request<ClientBody> {
    post(
        "/serving-endpoints/iris/invocations",
        whole(text.to_owned()),
    )
}

/// The answer's head; its body still streams. Dropping it closes the connection.
pub async fn open<B>(node: &Node, request: Request<B>) -> hyper::Result<http::Response<Incoming>>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let stream = tls(node, b"http/1.1").await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

pub async fn send_on(stream: TlsStream<TcpStream>, request: Request<ClientBody>) -> Reply {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP");
    tokio::spawn(connection);
    read(sender.send_request(request).await.expect("answer")).await
}

pub async fn send(node: &Node, request: Request<ClientBody>) -> Reply {
    read(open(node, request).await.expect("answer")).await
}

pub async fn read(response: http::Response<Incoming>) -> Reply {
    let (head, body) = response.into_parts();
    Reply {
        status: head.status,
        headers: head.headers,
        body: body.collect().await.expect("body").to_bytes(),
    }
}

pub async fn send_h2(node: &Node, path: &str, body: ClientBody) -> Reply {
    let request = Request::post(format!("https://localhost{path}"))
        .header(AUTHORIZATION, format!("Bearer {TOKEN}"))
        .body(body)
        .expect("request");
    send_on_h2(node, request).await
}

pub async fn send_on_h2(node: &Node, request: Request<ClientBody>) -> Reply {
    let stream = tls(node, b"h2").await;
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("h2");
    tokio::spawn(connection);
    read(sender.send_request(request).await.expect("answer")).await
}
