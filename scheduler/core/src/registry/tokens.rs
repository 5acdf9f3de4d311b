//! Bearer tokens: who may call the REST API and the gateways. Only hashes are kept.

use serde::{Deserialize, Serialize};
use shared::api::TokenInfo;
use shared::ids::TokenId;
use shared::routes::TokenGrant;
use shared::spec::TokenRole;
use shared::token::{self, BearerToken};

use super::record::{self, from_hex, to_hex};
use super::{Registry, Secret};
use crate::error::ApiError;
use crate::store_op::{Entries, Op, RestoreError};

const PREFIX: &str = "token/";
/// A table of more grants would make routes large, which every gateway holds.
const MAX_TOKENS: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    pub id: TokenId,
    /// Unique: it stands as the creator of what is made with the token.
    pub name: String,
    pub role: TokenRole,
    /// SHA-256 of the token's text.
    pub hash: [u8; 32],
    pub created_unix_ms: u64,
}

impl TokenRecord {
    pub fn info(&self) -> TokenInfo {
        TokenInfo {
            id: self.id.clone(),
            name: self.name.clone(),
            role: self.role,
            created_unix_ms: self.created_unix_ms,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredToken {
    name: String,
    role: TokenRole,
    /// Hex.
    sha256: String,
    created_unix_ms: u64,
}

impl Registry {
    pub(super) fn restore_tokens(&mut self, entries: &Entries) -> Result<(), RestoreError> {
        for (id, stored) in record::restore::<TokenId, StoredToken>(entries, PREFIX)? {
            let hash = from_hex(&stored.sha256).ok_or_else(|| RestoreError::Invalid {
                key: key(&id),
                problem: "holds a sha256 that is not 64 hexadecimal digits".into(),
            })?;
            let restored = TokenRecord {
                id: id.clone(),
                name: stored.name,
                role: stored.role,
                hash,
                created_unix_ms: stored.created_unix_ms,
            };
            self.tokens.insert(id, restored);
        }
        Ok(())
    }

    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    /// What gateways need to check tokens by themselves.
    pub fn grants(&self) -> Vec<TokenGrant> {
        self.tokens
            .values()
            .map(|record| TokenGrant {
                id: record.id.clone(),
                hash: record.hash,
                role: record.role,
            })
            .collect()
    }

    /// The token whose whole text this is.
    pub fn authenticate(&self, text: &str) -> Option<&TokenRecord> {
        let (id, _) = text.strip_prefix("shk_")?.split_once('_')?;
        let record = self.tokens.get(&TokenId::parse(id).ok()?)?;
        // A hash of 256 random bits tells nothing through the time that its comparison takes.
        (token::hash(text) == record.hash).then_some(record)
    }

    pub fn create_token(
        &mut self,
        name: &str,
        role: TokenRole,
        secret: &Secret,
        now_unix_ms: u64,
    ) -> Result<(BearerToken, Vec<Op>), ApiError> {
        if !is_token_name(name) {
            return Err(ApiError::invalid(
                "name must be 1 to 63 of A-Z a-z 0-9 _ - . @ and start with a letter or digit",
            ));
        }
        if self.tokens.values().any(|known| known.name == name) {
            return Err(ApiError::exists(format!(
                "a token named {name} exists: delete it first, or choose another name"
            )));
        }
        if self.tokens.len() >= MAX_TOKENS {
            return Err(ApiError::conflict(format!(
                "there are {MAX_TOKENS} tokens, the most allowed: delete some"
            )));
        }
        let token = BearerToken::new(secret.id.clone(), secret.bytes);
        let issued = TokenRecord {
            id: token.id.clone(),
            name: name.to_owned(),
            role,
            hash: token.hash(),
            created_unix_ms: now_unix_ms,
        };
        let stored = StoredToken {
            name: issued.name.clone(),
            role,
            sha256: to_hex(&issued.hash),
            created_unix_ms: now_unix_ms,
        };
        let put = record::put(key(&issued.id), &stored)?;
        self.tokens.insert(issued.id.clone(), issued);
        Ok((token, vec![put]))
    }

    /// A new token in the place of the one of this name, if there is one.
    pub fn replace_token(
        &mut self,
        name: &str,
        role: TokenRole,
        secret: &Secret,
        now_unix_ms: u64,
    ) -> Result<(BearerToken, Vec<Op>), ApiError> {
        let replaced = self.tokens.values().find(|known| known.name == name);
        let Some(replaced) = replaced.map(|known| known.id.clone()) else {
            return self.create_token(name, role, secret, now_unix_ms);
        };
        let kept = self.tokens.remove(&replaced);
        match self.create_token(name, role, secret, now_unix_ms) {
            Ok((token, mut ops)) => {
                ops.push(Op::Delete {
                    key: key(&replaced),
                });
                Ok((token, ops))
            }
            Err(error) => {
                self.tokens.extend(kept.map(|kept| (replaced, kept)));
                Err(error)
            }
        }
    }

    /// The token is refused from now on, by gateways once their routes say so.
    pub fn delete_token(&mut self, id: &TokenId) -> Result<Vec<Op>, ApiError> {
        let record = self.tokens.get(id);
        let record =
            record.ok_or_else(|| ApiError::not_found(format!("token {id} does not exist")))?;
        let admin = |token: &TokenRecord| token.role == TokenRole::Admin;
        if admin(record) && self.tokens.values().filter(|token| admin(token)).count() == 1 {
            return Err(ApiError::conflict(format!(
                "token {id} is the last with the role admin: create another first"
            )));
        }
        self.tokens.remove(id);
        Ok(vec![Op::Delete { key: key(id) }])
    }
}

fn is_token_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'@'))
}

fn key(id: &TokenId) -> String {
    format!("{PREFIX}{id}")
}
