//! Bearer tokens.

use axum::extract::State;
use scheduler_core::registry::Secret;
use scheduler_core::{ApiError, Core, Effects};
use serde_json::{Value, json};
use shared::api::{CreateToken, TokenCreated, TokenList};
use shared::ids::TokenId;

use super::Api;
use super::auth::{Admin, Caller};
use super::body::{Json, Named};
use super::error::Refusal;
use crate::control::Context;

pub(super) async fn list(
    _: Caller<Admin>,
    State(api): State<Api>,
) -> Result<Json<TokenList>, Refusal> {
    let tokens = api.control.read(|core| {
        let tokens = core.registry.tokens();
        tokens.map(|token| token.info()).collect()
    });
    let tokens = tokens.await?;
    Ok(Json(TokenList { tokens }))
}

pub(super) async fn create(
    _: Caller<Admin>,
    State(api): State<Api>,
    Json(input): Json<CreateToken>,
) -> Result<Json<TokenCreated>, Refusal> {
    let CreateToken { name, role } = input;
    let secret = fresh_secret();
    let token = api.control.decide(move |core, ctx| {
        let created = core
            .registry
            .create_token(&name, role, &secret, ctx.unix_ms);
        recorded(core, ctx, created)
    });
    let token = token.await??;
    Ok(Json(TokenCreated {
        token: token.expose().to_owned(),
        id: token.id,
        role,
    }))
}

pub(super) async fn delete(
    _: Caller<Admin>,
    State(api): State<Api>,
    Named(id): Named<TokenId>,
) -> Result<Json<Value>, Refusal> {
    let deleted = api.control.decide(move |core, ctx| {
        let deleted = core.registry.delete_token(&id);
        recorded(core, ctx, deleted.map(|ops| ((), ops)))
    });
    deleted.await??;
    Ok(Json(json!({})))
}

/// 256 random bits from the process's cryptographic generator, and an id.
pub(crate) fn fresh_secret() -> Secret {
    Secret {
        id: TokenId::from_bits(rand::random()),
        bytes: rand::random(),
    }
}

/// What follows from a change of the registry: its writes, then what plans and routes make of it.
pub(super) fn recorded<T>(
    core: &mut Core,
    ctx: &mut Context<'_>,
    changed: Result<(T, Vec<scheduler_core::store_op::Op>), ApiError>,
) -> (Result<T, ApiError>, Effects) {
    match changed {
        Ok((value, writes)) => {
            let mut effects = Effects {
                writes,
                ..Effects::default()
            };
            effects.merge(core.pass(ctx));
            (Ok(value), effects)
        }
        Err(error) => (Err(error), Effects::default()),
    }
}
