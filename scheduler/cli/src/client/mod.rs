//! HTTPS to a scheduler or a gateway.
//!
//! Trusts the context's CA and nothing else, uses no proxy, follows no redirect. Only a connection
//! that was not made is tried again here: then nothing was sent, whatever the method.

mod error;
mod retry;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared::api::certificates::BUNDLE_HEADER;

use crate::context::{Resolved, Token, read_token};
use crate::exit::Stop;
use crate::output::Output;
#[cfg(test)]
pub(crate) use error::ApiFailure;
pub(crate) use error::ClientError;
pub(crate) use retry::Backoff;

const CONNECT: Duration = Duration::from_secs(5);

/// For calls that read or change records.
pub(crate) const CALL: Duration = Duration::from_secs(30);

/// For calls behind which the server reads or deletes a model's bytes.
pub(crate) const LONG_CALL: Duration = Duration::from_secs(180);

/// Answers are records and lists; a larger one is not ours.
const MAX_ANSWER_BYTES: usize = 64 << 20;

#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<Token>,
    /// For messages.
    ca: String,
    /// Which authorities the server trusts now, as its last answer said.
    told: Arc<Mutex<Option<String>>>,
}

/// One call. `path` starts with `/`; names in it are parsed ones, which need no escaping.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Vec<(&'a str, String)>,
    pub(crate) body: Payload,
    /// `None`: as long as bytes may come (streams).
    pub(crate) timeout: Option<Duration>,
}

#[derive(Clone)]
pub(crate) enum Payload {
    None,
    Json(Bytes),
    Octets(Bytes),
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            body: Payload::None,
            timeout: Some(CALL),
        }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn query(mut self, key: &'a str, value: impl ToString) -> Self {
        self.query.push((key, value.to_string()));
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        let json = serde_json::to_vec(body).expect("requests are plain records");
        self.body = Payload::Json(json.into());
        self
    }

    pub(crate) fn octets(mut self, body: Bytes) -> Self {
        self.body = Payload::Octets(body);
        self
    }

    pub(crate) fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }
}

impl Client {
    /// To the scheduler's REST API.
    pub(crate) fn to_server(context: &Resolved, output: &Output) -> anyhow::Result<Self> {
        Self::to(context.server()?, context, output)
    }

    /// To the gateway, for queries.
    pub(crate) fn to_gateway(context: &Resolved, output: &Output) -> anyhow::Result<Self> {
        Self::to(context.gateway()?, context, output)
    }

    fn to(base: &str, context: &Resolved, output: &Output) -> anyhow::Result<Self> {
        let token = match &context.token_file {
            None => None,
            Some(path) => {
                let (token, warning) = read_token(path)?;
                if let Some(warning) = warning {
                    output.warn(warning);
                }
                Some(token)
            }
        };
        Self::new(base, context.ca_file.as_deref(), token)
    }

    pub(crate) fn new(base: &str, ca: Option<&Path>, token: Option<Token>) -> anyhow::Result<Self> {
        let base = base.trim_end_matches('/');
        check_address(base)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("stokehold/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .tcp_keepalive(Duration::from_secs(15))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        match ca {
            Some(path) => builder = builder.tls_certs_only(certificates(path)?),
            None if base.starts_with("https:") => {
                return Err(Stop::Usage(format!(
                    "no CA is known for {base}: give --ca-file, or set it with `stokehold context \
                     set NAME --ca-file FILE`"
                ))
                .into());
            }
            None => builder = builder.tls_certs_only([]),
        }
        Ok(Self {
            http: builder.build()?,
            base: base.to_owned(),
            token,
            ca: ca.map_or_else(|| "a known CA".into(), |path| path.display().to_string()),
            told: Arc::default(),
        })
    }

    /// A call whose answer is a record.
    pub(crate) async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, ClientError> {
        let body = self.bytes(call).await?;
        serde_json::from_slice(&body).map_err(|source| ClientError::NotUnderstood {
            url: self.base.clone(),
            source,
        })
    }

    /// A call whose answer says nothing beyond its success.
    pub(crate) async fn done(&self, call: Call<'_>) -> Result<(), ClientError> {
        self.bytes(call).await.map(drop)
    }

    pub(crate) async fn bytes(&self, call: Call<'_>) -> Result<Vec<u8>, ClientError> {
        let response = self.open(&call).await?;
        self.body(response).await
    }

    /// A call whose answer's body is read by the caller; error answers are errors.
    pub(crate) async fn open(&self, call: &Call<'_>) -> Result<Response, ClientError> {
        let response = self.send(call).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let request_id = response
            .headers()
            .get("x-request-id")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let body = self.body(response).await.unwrap_or_default();
        Err(ClientError::of_answer(status, request_id, &body))
    }

    /// For a caller that sends the same call many times, counts each failure, and tries none again.
    pub(crate) fn prepared(
        &self,
        call: &Call<'_>,
    ) -> Result<(reqwest::Client, reqwest::Request), ClientError> {
        let request = self.request(call).build();
        let request =
            request.map_err(|error| ClientError::of_transport(&self.base, error, &self.ca))?;
        Ok((self.http.clone(), request))
    }

    async fn send(&self, call: &Call<'_>) -> Result<Response, ClientError> {
        let mut tries = 0;
        loop {
            let error = match self.request(call).send().await {
                Ok(response) => {
                    self.note_authorities(&response);
                    return Ok(response);
                }
                Err(error) => error,
            };
            let wait = Backoff::CONNECT.wait(tries, &mut rand::rng());
            match wait {
                Some(wait) if error.is_connect() => tokio::time::sleep(wait).await,
                Some(_) | None => {
                    return Err(ClientError::of_transport(&self.base, error, &self.ca));
                }
            }
            tries += 1;
        }
    }

    fn note_authorities(&self, response: &Response) {
        let header = response.headers().get(BUNDLE_HEADER);
        if let Some(told) = header.and_then(|value| value.to_str().ok()) {
            let mut last = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(told.to_owned());
        }
    }

    /// Which authorities the server trusts now; `None` where it has not said.
    pub(crate) fn authorities_told(&self) -> Option<String> {
        let last = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    fn request(&self, call: &Call<'_>) -> RequestBuilder {
        let url = format!("{}{}", self.base, call.path);
        let mut request = self.http.request(call.method.clone(), url);
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        if let Some(timeout) = call.timeout {
            request = request.timeout(timeout);
        }
        match &call.body {
            Payload::None => request,
            Payload::Json(json) => request
                .header("content-type", "application/json")
                .body(json.clone()),
            Payload::Octets(octets) => request
                .header("content-type", "application/octet-stream")
                .body(octets.clone()),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                break;
            }
        }
        Ok(body)
    }

    /// The next piece of an answer's body.
    pub(crate) async fn chunk(
        &self,
        response: &mut Response,
    ) -> Result<Option<Bytes>, ClientError> {
        response
            .chunk()
            .await
            .map_err(|error| ClientError::of_transport(&self.base, error, &self.ca))
    }
}

/// Tokens travel over TLS, or not beyond this machine.
fn check_address(base: &str) -> Result<(), Stop> {
    let url = reqwest::Url::parse(base).map_err(|_| bad_address(base, "it is not a URL"))?;
    let local = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
    match url.scheme() {
        "https" => Ok(()),
        "http" if local => Ok(()),
        "http" => Err(bad_address(
            base,
            "plain http would show the token to the network",
        )),
        _ => Err(bad_address(base, "it is not an https:// address")),
    }
}

fn bad_address(base: &str, problem: &str) -> Stop {
    Stop::Usage(format!(
        "{base:?} cannot be used: {problem}; expected https://HOST:PORT"
    ))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    use anyhow::Context as _;
    let pem = std::fs::read(path).with_context(|| format!("read CA file {}", path.display()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem)
        .with_context(|| format!("CA file {} is not PEM", path.display()))?;
    anyhow::ensure!(
        !certificates.is_empty(),
        "CA file {} holds no certificate",
        path.display()
    );
    Ok(certificates)
}

#[cfg(test)]
mod tests;
