//! Nodes and the tokens with which they join.

use axum::extract::State;
use scheduler_core::Effects;
use scheduler_core::events::recorded as told;
use scheduler_core::registry::{JoinTokenRecord, NewJoinToken};
use serde_json::{Value, json};
use shared::api::{CreateNodeToken, NodeDescription, NodeList, NodeTokenCreated, NodeTokenList};
use shared::ids::{NodeName, Role, TokenId};
use shared::wire::{Peer, close};

use super::Api;
use super::auth::{Admin, Caller, Query};
use super::body::{Json, Named};
use super::error::Refusal;
use super::tokens::{fresh_secret, recorded};

pub(super) async fn list(
    _: Caller<Query>,
    State(api): State<Api>,
) -> Result<Json<NodeList>, Refusal> {
    let nodes = api.control.read(|core| core.nodes()).await?;
    Ok(Json(NodeList { nodes }))
}

pub(super) async fn describe(
    _: Caller<Query>,
    State(api): State<Api>,
    Named(name): Named<NodeName>,
) -> Result<Json<NodeDescription>, Refusal> {
    let found = api.control.read(move |core| core.describe_node(&name));
    Ok(Json(found.await??))
}

/// For good: the node's sessions end now, and gateways accept its certificates no longer.
pub(super) async fn revoke(
    caller: Caller<Admin>,
    State(api): State<Api>,
    Named(name): Named<NodeName>,
) -> Result<Json<Value>, Refusal> {
    let by = caller.token.name;
    let revoked = api.control.decide(move |core, ctx| {
        let revoked = core.registry.revoke(&name);
        if revoked.as_ref().is_ok_and(|writes| !writes.is_empty()) {
            core.tell(told::revoked(&name, &by), ctx.unix_ms);
        }
        let (result, mut effects) = recorded(core, ctx, revoked.map(|ops| ((), ops)));
        if result.is_ok() {
            for role in [Role::Agent, Role::Gateway] {
                let node = name.clone();
                let reason = "this node was revoked".to_owned();
                effects
                    .close
                    .push((Peer { role, node }, close::REVOKED, reason));
            }
        }
        (result, effects)
    });
    revoked.await??;
    Ok(Json(json!({})))
}

/// Forgets a revoked node whose certificates have expired: its name is free again.
pub(super) async fn remove(
    caller: Caller<Admin>,
    State(api): State<Api>,
    Named(name): Named<NodeName>,
) -> Result<Json<Value>, Refusal> {
    let by = caller.token.name;
    let removed = api
        .control
        .decide(move |core, ctx| match core.remove_node(&name, ctx) {
            Ok(effects) => {
                core.tell(told::removed(&name, &by), ctx.unix_ms);
                (Ok(()), effects)
            }
            Err(error) => (Err(error), Effects::default()),
        });
    removed.await??;
    Ok(Json(json!({})))
}

pub(super) async fn list_tokens(
    _: Caller<Admin>,
    State(api): State<Api>,
) -> Result<Json<NodeTokenList>, Refusal> {
    let tokens = api.control.read(|core| {
        let tokens = core.registry.join_tokens();
        tokens.map(JoinTokenRecord::info).collect()
    });
    let tokens = tokens.await?;
    Ok(Json(NodeTokenList { tokens }))
}

pub(super) async fn create_token(
    _: Caller<Admin>,
    State(api): State<Api>,
    Json(input): Json<CreateNodeToken>,
) -> Result<Json<NodeTokenCreated>, Refusal> {
    let new = NewJoinToken {
        roles: input.roles,
        lifetime_s: input.lifetime_seconds,
        addresses: api.http_addresses.clone(),
        ca_sha256: api.ca.signer_sha256(),
        replace: input.replace,
    };
    let secret = fresh_secret();
    let token = api.control.decide(move |core, ctx| {
        let now_unix = ctx.unix_ms / 1000;
        let created = core.registry.create_join_token(new, &secret, now_unix);
        recorded(core, ctx, created)
    });
    let token = token.await??;
    Ok(Json(NodeTokenCreated {
        token: token.encode(),
        expires_unix: token.expires,
        id: token.id,
    }))
}

pub(super) async fn delete_token(
    _: Caller<Admin>,
    State(api): State<Api>,
    Named(id): Named<TokenId>,
) -> Result<Json<Value>, Refusal> {
    let deleted = api.control.decide(move |core, ctx| {
        let deleted = core.registry.delete_join_token(&id);
        recorded(core, ctx, deleted.map(|ops| ((), ops)))
    });
    deleted.await??;
    Ok(Json(json!({})))
}
