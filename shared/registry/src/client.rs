//! Manifests and blobs of one image, from the first of its hosts that has them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use shared::digest::OciDigest;
use shared::ids::ImageRef;

use crate::auth::{AuthFile, Credentials};
use crate::challenge;
use crate::error::PullError;
use crate::hosts::{self, Host};
use crate::reference::{Reference, Version};
use crate::token;

/// Manifests and indexes are some KiB; the distribution specification asks clients to take 4 MiB.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// What a registry says about an error; more is read by nobody.
const MAX_ERROR_BYTES: usize = 8 << 10;
/// A connection that brings nothing for so long is given up.
const STALL: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
const BLOBS: &str = "application/octet-stream, */*;q=0.5";
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Everything that files say about how to get an image. Holds secrets; the network was not used yet.
#[derive(Debug)]
pub struct Access {
    image: ImageRef,
    reference: Reference,
    hosts: Vec<(Host, Option<Credentials>)>,
    hosts_file: PathBuf,
    auth_file: PathBuf,
    helpers: bool,
}

impl Access {
    pub fn load(hosts_dir: &Path, auth_file: &Path, image: &ImageRef) -> Result<Self, PullError> {
        let reference = Reference::parse(image)?;
        let hosts = hosts::load(hosts_dir, &reference.host)?;
        let secrets = AuthFile::read(auth_file)?;
        let hosts = hosts.into_iter().map(|host| {
            let credentials = secrets.of(&host.authority()).cloned();
            (host, credentials)
        });
        Ok(Self {
            image: image.clone(),
            hosts: hosts.collect(),
            hosts_file: hosts::file_for(hosts_dir, &reference.host),
            auth_file: auth_file.to_owned(),
            helpers: secrets.names_helpers(),
            reference,
        })
    }
}

/// Asks for one image. Needs a process-wide crypto provider of rustls.
pub struct Client {
    hosts: Vec<Asked>,
    access: Access,
}

/// One host, and what it was last shown.
pub(crate) struct Asked {
    pub(crate) host: Host,
    pub(crate) http: reqwest::Client,
    pub(crate) credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A manifest or an index, with the digest that its bytes have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    pub digest: OciDigest,
    pub bytes: Vec<u8>,
}

/// A blob on its way, from where it was asked for. Its bytes are not verified: whoever takes them does.
pub struct Blob {
    response: Response,
    /// Bytes before the place asked for, of a server that knows no ranges.
    skip: u64,
    left: u64,
    what: String,
    host: String,
}

impl Client {
    pub fn new(mut access: Access) -> Result<Self, PullError> {
        let hosts = std::mem::take(&mut access.hosts);
        let hosts = hosts.into_iter().map(|(host, credentials)| {
            let http = http(&host).map_err(|problem| PullError::Unusable {
                file: access.hosts_file.clone(),
                host: host.base.to_string(),
                problem,
            })?;
            Ok(Asked {
                host,
                http,
                credentials,
                authorization: Mutex::new(None),
            })
        });
        Ok(Self {
            hosts: hosts.collect::<Result<_, PullError>>()?,
            access,
        })
    }

    /// What the reference means now.
    pub async fn manifest(&self) -> Result<Manifest, PullError> {
        let version = &self.access.reference.version;
        let path = format!("manifests/{version}");
        let able = |asked: &&Asked| match version {
            Version::Tag(_) => asked.host.resolve,
            Version::Digest(_) => asked.host.pull,
        };
        let what = format!("image {}", self.access.image);
        let mut failures = Vec::new();
        for asked in self.hosts.iter().filter(able) {
            match self.manifest_of(asked, &path, &what).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => failures.push(error),
            }
        }
        Err(self.failure(what, failures))
    }

    /// A whole small blob, or a manifest by its digest, verified.
    pub async fn small(
        &self,
        digest: &OciDigest,
        size_bytes: u64,
        is_manifest: bool,
    ) -> Result<Vec<u8>, PullError> {
        let what = self.blob_name(digest);
        let mut failures = Vec::new();
        for asked in self.hosts.iter().filter(|asked| asked.host.pull) {
            let read = async {
                let mut blob = self.open(asked, digest, size_bytes, 0, is_manifest).await?;
                let mut bytes = Vec::new();
                while let Some(piece) = blob.next().await? {
                    bytes.extend_from_slice(&piece);
                }
                if sha256(&bytes) == *digest {
                    return Ok(bytes);
                }
                Err(PullError::Wrong {
                    what: what.clone(),
                    host: shown(&asked.host.base),
                    problem: "its digest is another".into(),
                })
            };
            match read.await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failures.push(error),
            }
        }
        Err(self.failure(what, failures))
    }

    /// A blob of any size from `offset` on. Hosts are tried until one begins to answer.
    pub async fn blob(
        &self,
        digest: &OciDigest,
        size_bytes: u64,
        offset: u64,
        is_manifest: bool,
    ) -> Result<Blob, PullError> {
        let mut failures = Vec::new();
        for asked in self.hosts.iter().filter(|asked| asked.host.pull) {
            match self
                .open(asked, digest, size_bytes, offset, is_manifest)
                .await
            {
                Ok(blob) => return Ok(blob),
                Err(error) => failures.push(error),
            }
        }
        Err(self.failure(self.blob_name(digest), failures))
    }

    fn blob_name(&self, digest: &OciDigest) -> String {
        format!("blob {digest} of image {}", self.access.image)
    }

    /// The last host's failure says what to do: it is the registry itself.
    fn failure(&self, what: String, mut failures: Vec<PullError>) -> PullError {
        match (failures.pop(), failures.len()) {
            (None, _) => PullError::NoHost {
                what,
                hosts_file: self.access.hosts_file.clone(),
            },
            (Some(only), 0) => only,
            (Some(last), _) => PullError::Several {
                last: Box::new(last),
                earlier: failures
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("; "),
            },
        }
    }

    async fn manifest_of(
        &self,
        asked: &Asked,
        path: &str,
        what: &str,
    ) -> Result<Manifest, PullError> {
        let mut response = self.get(asked, path, MANIFESTS, 0, what).await?;
        let host = shown(&asked.host.base);
        let wrong = |problem: String| PullError::Wrong {
            what: what.to_owned(),
            host: host.clone(),
            problem,
        };
        let content_type = header_text(response.headers(), &CONTENT_TYPE);
        let told = header_text(response.headers(), &DOCKER_CONTENT_DIGEST);
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| PullError::BrokenOff {
            what: what.to_owned(),
            host: host.clone(),
            problem: chain(&e.without_url()),
        })? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > MAX_MANIFEST_BYTES {
                return Err(wrong("it is larger than 4 MiB".into()));
            }
        }
        let digest = sha256(&bytes);
        let expected = match &self.access.reference.version {
            Version::Digest(digest) => Some(digest.to_string()),
            Version::Tag(_) => told.filter(|told| told.starts_with("sha256:")),
        };
        if let Some(expected) = expected.filter(|expected| expected != digest.as_str()) {
            return Err(wrong(format!("it has the digest {digest}, not {expected}")));
        }
        Ok(Manifest {
            media_type: media_type(content_type.as_deref(), &bytes),
            digest,
            bytes,
        })
    }

    async fn open(
        &self,
        asked: &Asked,
        digest: &OciDigest,
        size_bytes: u64,
        offset: u64,
        is_manifest: bool,
    ) -> Result<Blob, PullError> {
        let what = self.blob_name(digest);
        let (kind, accept) = if is_manifest {
            ("manifests", MANIFESTS)
        } else {
            ("blobs", BLOBS)
        };
        // Manifests are small, and no registry promises ranges of them.
        let from = if is_manifest { 0 } else { offset };
        let path = format!("{kind}/{digest}");
        let response = self.get(asked, &path, accept, from, &what).await?;
        let host = shown(&asked.host.base);
        let begins = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = header_text(response.headers(), &CONTENT_RANGE);
                range
                    .as_deref()
                    .and_then(range_start)
                    .filter(|at| *at <= offset)
            }
            _ => Some(0),
        };
        let Some(begins) = begins else {
            return Err(PullError::Wrong {
                what,
                host,
                problem: format!("it begins elsewhere than at byte {offset}"),
            });
        };
        let told = response.content_length();
        if told.is_some_and(|told| told != size_bytes.saturating_sub(begins)) {
            let told = told.unwrap_or_default().saturating_add(begins);
            return Err(PullError::Wrong {
                what,
                host,
                problem: format!("it has {told} bytes, the image says {size_bytes}"),
            });
        }
        Ok(Blob {
            response,
            skip: offset - begins,
            left: size_bytes.saturating_sub(offset),
            what,
            host,
        })
    }

    /// One answer that is a success, after a login where one is asked for.
    async fn get(
        &self,
        asked: &Asked,
        path: &str,
        accept: &str,
        from: u64,
        what: &str,
    ) -> Result<Response, PullError> {
        let mut url = asked.host.base.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!(
            "{base}/{}/{path}",
            self.access.reference.repository
        ));
        if let Some(namespace) = &asked.host.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        let mut logged_in = false;
        loop {
            let authorization = asked.authorization();
            let (response, here) = self
                .follow(asked, &url, accept, from, authorization)
                .await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && here && !logged_in {
                logged_in = true;
                let challenges = challenges(response.headers());
                drop(response);
                if let Some(header) = token::authorization(self, asked, &challenges, what).await? {
                    asked.set_authorization(header);
                    continue;
                }
                return Err(self.login_failure(asked, what));
            }
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if here => {
                    self.login_failure(asked, what)
                }
                StatusCode::NOT_FOUND if here => PullError::NotFound {
                    what: what.to_owned(),
                    host: shown(&asked.host.base),
                },
                _ => PullError::Status {
                    what: what.to_owned(),
                    host: shown(&asked.host.base),
                    status: status.as_u16(),
                    said: said(response).await,
                },
            });
        }
    }

    /// Follows redirects; says whether the answer is the host's own. What is a secret, and what
    /// `hosts.toml` adds, stays with the host.
    async fn follow(
        &self,
        asked: &Asked,
        url: &Url,
        accept: &str,
        from: u64,
        authorization: Option<HeaderValue>,
    ) -> Result<(Response, bool), PullError> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let here = at.origin() == url.origin();
            let mut request = asked.http.get(at.clone()).header(ACCEPT, accept);
            if here {
                for (name, value) in &asked.host.headers {
                    request = request.header(name, value);
                }
                if let Some(authorization) = &authorization {
                    request = request.header(AUTHORIZATION, authorization.clone());
                }
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await.map_err(|e| self.unreachable(&at, e))?;
            if !response.status().is_redirection() {
                return Ok((response, here));
            }
            let location = header_text(response.headers(), &LOCATION);
            let next = location.and_then(|location| at.join(&location).ok());
            let secure = |next: &Url| {
                next.scheme() == "https" || (next.scheme() == "http" && at.scheme() == "http")
            };
            at = match next {
                Some(next) if secure(&next) && next.username().is_empty() => next,
                _ => {
                    return Err(self.redirect_failure(
                        asked,
                        "it redirects to nowhere, or from https to http",
                    ));
                }
            };
        }
        Err(self.redirect_failure(asked, "it redirects more than five times"))
    }

    fn redirect_failure(&self, asked: &Asked, problem: &str) -> PullError {
        PullError::Wrong {
            what: format!("image {}", self.access.image),
            host: shown(&asked.host.base),
            problem: problem.to_owned(),
        }
    }

    pub(crate) fn unreachable(&self, url: &Url, error: reqwest::Error) -> PullError {
        PullError::Unreachable {
            what: format!("image {}", self.access.image),
            host: shown(url),
            problem: chain(&error.without_url()),
            hosts_file: self.access.hosts_file.clone(),
        }
    }

    pub(crate) fn login_failure(&self, asked: &Asked, what: &str) -> PullError {
        let (what, host) = (what.to_owned(), shown(&asked.host.base));
        let auth_file = self.access.auth_file.clone();
        if asked.credentials.is_some() {
            PullError::LoginRefused {
                what,
                host,
                auth_file,
            }
        } else {
            PullError::LoginNeeded {
                what,
                host,
                auth_file,
                helpers: self.access.helpers,
            }
        }
    }

    pub(crate) fn repository(&self) -> &str {
        &self.access.reference.repository
    }
}

impl Asked {
    fn authorization(&self) -> Option<HeaderValue> {
        let held = self.authorization.lock();
        held.expect("nothing panics under it").clone()
    }

    fn set_authorization(&self, header: HeaderValue) {
        let mut held = self.authorization.lock().expect("nothing panics under it");
        *held = Some(header);
    }
}

impl Blob {
    /// The next bytes; `None` after the last. More or fewer than the image says are an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        loop {
            let piece = self.response.chunk().await;
            let piece = piece.map_err(|e| self.broken_off(chain(&e.without_url())))?;
            let Some(mut bytes) = piece else {
                return if self.left == 0 && self.skip == 0 {
                    Ok(None)
                } else {
                    Err(self.broken_off(format!("{} bytes are missing", self.left)))
                };
            };
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            bytes.advance(usize::try_from(skipped).unwrap_or(usize::MAX));
            if bytes.is_empty() {
                continue;
            }
            let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
                return Err(PullError::Wrong {
                    what: self.what.clone(),
                    host: self.host.clone(),
                    problem: "it has more bytes than the image says".into(),
                });
            };
            self.left = left;
            return Ok(Some(bytes));
        }
    }

    fn broken_off(&self, problem: String) -> PullError {
        PullError::BrokenOff {
            what: self.what.clone(),
            host: self.host.clone(),
            problem,
        }
    }
}

fn http(host: &Host) -> Result<reqwest::Client, String> {
    let text = |e: reqwest::Error| chain(&e);
    let mut authorities = Vec::new();
    for pem in &host.ca {
        let bundle = reqwest::Certificate::from_pem_bundle(pem).map_err(text)?;
        if bundle.is_empty() {
            return Err("a file named by `ca` holds no certificate in PEM".into());
        }
        authorities.extend(bundle);
    }
    for (name, value) in &host.headers {
        let valid = HeaderName::try_from(name.as_str()).is_ok()
            && HeaderValue::try_from(value.as_str()).is_ok();
        if !valid {
            return Err(format!("header {name:?} is none that HTTP allows"));
        }
    }
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("stokehold/", env!("CARGO_PKG_VERSION")))
        .default_headers(HeaderMap::from_iter([(
            ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        )]))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(host.dial_timeout)
        .read_timeout(STALL)
        .tls_danger_accept_invalid_certs(host.skip_verify);
    if !authorities.is_empty() {
        builder = builder.tls_certs_merge(authorities);
    }
    if let Some(pem) = &host.client {
        let identity = reqwest::Identity::from_pem(pem);
        builder = builder.identity(
            identity
                .map_err(|_| "`client` is no certificate with its key, both in PEM".to_owned())?,
        );
    }
    if let Some(proxy) = &host.proxy {
        builder = builder.proxy(reqwest::Proxy::all(proxy.clone()).map_err(text)?);
    }
    builder.build().map_err(text)
}

fn challenges(headers: &HeaderMap) -> Vec<challenge::Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenge::parse)
        .collect()
}

/// The registry's own words about an error, in the form that the specification gives them.
async fn said(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_ERROR_BYTES {
            return String::new();
        }
    }
    let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let error = &body["errors"][0];
    let words = error["message"].as_str().or(error["code"].as_str());
    let plain = |c: char| !c.is_control();
    let words: String = words
        .unwrap_or_default()
        .chars()
        .filter(|c| plain(*c))
        .take(200)
        .collect();
    if words.is_empty() {
        String::new()
    } else {
        format!(": {words}")
    }
}

/// What the document says of itself counts where the header is of a general kind.
fn media_type(content_type: Option<&str>, bytes: &[u8]) -> String {
    let header = content_type.and_then(|text| text.split(';').next());
    let header = header.unwrap_or_default().trim().to_ascii_lowercase();
    if header.starts_with("application/vnd.") {
        return header;
    }
    let body: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    body["mediaType"].as_str().unwrap_or(&header).to_owned()
}

/// `bytes 100-199/200` begins at 100.
fn range_start(text: &str) -> Option<u64> {
    let range = text.trim().strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

pub(crate) fn sha256(bytes: &[u8]) -> OciDigest {
    OciDigest::parse(&format!("sha256:{}", hex::encode(Sha256::digest(bytes))))
        .expect("the hex of a SHA-256 is a digest")
}

/// A host as people know it; paths and queries could hold what nobody should see.
pub(crate) fn shown(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// An error with its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_begins_where_it_says() {
        assert_eq!(range_start("bytes 100-199/200"), Some(100));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        assert_eq!(range_start("bytes */200"), None);
        assert_eq!(range_start("items 1-2/3"), None);
    }

    #[test]
    fn the_media_type_is_the_headers_unless_that_says_nothing() {
        let body = br#"{"mediaType": "application/vnd.oci.image.index.v1+json"}"#;
        let of = |header| media_type(header, body);
        assert_eq!(
            of(Some(
                "application/vnd.oci.image.manifest.v1+json; charset=utf-8"
            )),
            "application/vnd.oci.image.manifest.v1+json"
        );
        for general in [Some("application/json"), Some("text/plain"), None] {
            assert_eq!(of(general), "application/vnd.oci.image.index.v1+json");
        }
        assert_eq!(media_type(Some("text/html"), b"<html>"), "text/html");
    }
}
