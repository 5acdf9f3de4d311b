//! What to show a registry that wants a login: a password, or a token from the service that it names.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::auth::Credentials;
use crate::challenge::Challenge;
use crate::client::{Asked, Client, chain, shown};
use crate::error::PullError;

const MAX_TOKEN_BYTES: usize = 256 << 10;
const CLIENT_ID: &str = "stokehold";

#[derive(Deserialize)]
struct Granted {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The header for the first challenge that can be met; `None` where there is none.
pub(crate) async fn authorization(
    client: &Client,
    asked: &Asked,
    challenges: &[Challenge],
    what: &str,
) -> Result<Option<HeaderValue>, PullError> {
    for challenge in challenges {
        match (challenge, &asked.credentials) {
            (Challenge::Basic, Some(Credentials::Password { user, password })) => {
                return Ok(Some(basic(user, password)));
            }
            (Challenge::Basic, _) => {}
            (Challenge::Bearer { .. }, Some(Credentials::RegistryToken(token))) => {
                return Ok(bearer(token));
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                _,
            ) => {
                let scope = scope.clone();
                let scope =
                    scope.unwrap_or_else(|| format!("repository:{}:pull", client.repository()));
                let question = Question {
                    realm: realm_of(asked, realm, what)?,
                    service: service.as_deref().unwrap_or_default(),
                    scope: &scope,
                };
                let token = ask(client, asked, &question, what).await?;
                return Ok(bearer(&token));
            }
        }
    }
    Ok(None)
}

struct Question<'a> {
    realm: Url,
    service: &'a str,
    scope: &'a str,
}

/// The token service. A registry reached by HTTPS cannot send anybody's password over plain HTTP, and
/// one reached by plain HTTP not to another machine.
fn realm_of(asked: &Asked, realm: &str, what: &str) -> Result<Url, PullError> {
    let base = &asked.host.base;
    let url = Url::parse(realm).ok().filter(|url| {
        let beside = base.scheme() == "http" && url.host() == base.host();
        let secure = url.scheme() == "https" || (url.scheme() == "http" && beside);
        secure && url.has_host() && url.username().is_empty()
    });
    url.ok_or_else(|| PullError::Wrong {
        what: what.to_owned(),
        host: shown(base),
        problem: format!(
            "it sends for a token to {:?}, which is no https:// address",
            realm.chars().take(200).collect::<String>()
        ),
    })
}

async fn ask(
    client: &Client,
    asked: &Asked,
    question: &Question<'_>,
    what: &str,
) -> Result<String, PullError> {
    let mut url = question.realm.clone();
    let pairs = [("service", question.service), ("scope", question.scope)];
    let request = match &asked.credentials {
        Some(Credentials::IdentityToken(token)) => {
            let body = form(&[
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("service", question.service),
                ("scope", question.scope),
                ("refresh_token", token),
            ]);
            let form_type = "application/x-www-form-urlencoded";
            asked
                .http
                .post(url.clone())
                .header(CONTENT_TYPE, form_type)
                .body(body)
        }
        credentials => {
            for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
                url.query_pairs_mut().append_pair(name, value);
            }
            match credentials {
                Some(Credentials::Password { user, password }) => {
                    let header = basic(user, password);
                    asked.http.get(url.clone()).header(AUTHORIZATION, header)
                }
                _ => asked.http.get(url.clone()),
            }
        }
    };
    let mut response = request
        .send()
        .await
        .map_err(|e| client.unreachable(&url, e))?;
    let status = response.status();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(client.login_failure(asked, what));
    }
    if !status.is_success() {
        return Err(PullError::Status {
            what: format!("a token for {what}"),
            host: shown(&url),
            status: status.as_u16(),
            said: String::new(),
        });
    }
    let wrong = |problem: String| PullError::Wrong {
        what: format!("a token for {what}"),
        host: shown(&url),
        problem,
    };
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => break,
            Err(e) => return Err(wrong(chain(&e.without_url()))),
        }
        if bytes.len() > MAX_TOKEN_BYTES {
            return Err(wrong("it is larger than 256 KiB".into()));
        }
    }
    // An error of the parser could show a piece of the token.
    let granted: Granted = serde_json::from_slice(&bytes)
        .map_err(|_| wrong("it is not JSON with a `token`".into()))?;
    let token = if granted.token.is_empty() {
        granted.access_token
    } else {
        granted.token
    };
    if token.is_empty() {
        return Err(wrong("it holds no token".into()));
    }
    Ok(token)
}

fn form(pairs: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://x").expect("a URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    secret(&format!("Basic {encoded}")).expect("base64 is a header's value")
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
