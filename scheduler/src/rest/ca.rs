//! The certificate authority: what it is, and its rotation.

use axum::extract::State;
use daemon::identity::moment;
use scheduler_core::events::recorded as told;
use scheduler_core::registry::RotationStage;
use scheduler_core::{ApiError, Effects};
use shared::api::certificates::{
    CaBundle, CaRotationFinished, CaStatus, CaWaiting, FinishCaRotation,
};
use shared::wire::{Peer, close};
use tracing::{info, warn};

use super::Api;
use super::auth::{Admin, Caller, Query};
use super::body::Json;
use super::error::{Refusal, internal};
use crate::authorities::RotationError;

pub(super) async fn bundle(_: Caller<Query>, State(api): State<Api>) -> Json<CaBundle> {
    Json(CaBundle {
        ca_pem: api.ca.bundle_pem(),
    })
}

pub(super) async fn status(
    _: Caller<Admin>,
    State(api): State<Api>,
) -> Result<Json<CaStatus>, Refusal> {
    current(&api).await
}

pub(super) async fn rotate(
    caller: Caller<Admin>,
    State(api): State<Api>,
) -> Result<Json<CaStatus>, Refusal> {
    api.ca.rotate().map_err(refused)?;
    info!("a new certificate authority was made beside the old one");
    let by = caller.token.name;
    let tell = (api.control).decide(move |core, ctx| {
        core.tell(told::authority_made(&by), ctx.unix_ms);
        ((), Effects::default())
    });
    tell.await?;
    current(&api).await
}

pub(super) async fn finish(
    caller: Caller<Admin>,
    State(api): State<Api>,
    Json(input): Json<FinishCaRotation>,
) -> Result<Json<CaRotationFinished>, Refusal> {
    let waiting = match api.ca.rotation() {
        None => return Err(refused(RotationError::None)),
        Some((RotationStage::Spreading, _)) => return Err(refused(RotationError::TooEarly)),
        Some((RotationStage::Replacing, new)) => {
            waiting(&api, RotationStage::Replacing, new).await?
        }
    };
    if !waiting.is_empty() && !input.force {
        let names: Vec<String> = waiting
            .iter()
            .map(|it| format!("{} {} ({})", it.role, it.node, it.reason))
            .collect();
        return Err(ApiError::conflict(format!(
            "these still depend on the old authority: {}. Wait for them, send away those that are \
             gone (`stokehold node revoke NAME`), or cut them off with --force: they must join again \
             then",
            names.join("; ")
        ))
        .into());
    }
    api.ca.finish().map_err(refused)?;
    if waiting.is_empty() {
        info!("the old certificate authority is trusted no longer");
    } else {
        warn!(
            nodes = waiting.len(),
            "the old certificate authority was dropped by force"
        );
    }
    let cut_off = waiting.clone();
    let by = caller.token.name;
    let closed = api.control.decide(move |core, ctx| {
        core.tell(told::authority_dropped(&by, waiting.len()), ctx.unix_ms);
        let mut effects = Effects::default();
        for it in waiting {
            let reason = format!(
                "its certificate is of an authority that was dropped: join this machine again with a \
                 token from `stokehold node token --replace {}`",
                it.node
            );
            let peer = Peer {
                role: it.role,
                node: it.node,
            };
            effects.close.push((peer, close::OTHER_CLUSTER, reason));
        }
        ((), effects)
    });
    closed.await?;
    Ok(Json(CaRotationFinished { cut_off }))
}

async fn waiting(api: &Api, stage: RotationStage, new: String) -> Result<Vec<CaWaiting>, Refusal> {
    let waiting = api
        .control
        .read(move |core| core.registry.waiting_for(stage, &new));
    Ok(waiting.await?)
}

async fn current(api: &Api) -> Result<Json<CaStatus>, Refusal> {
    let rotation = api.ca.rotation();
    let asked = rotation.clone();
    let looked = api.control.read(move |core| {
        let waiting = asked.map(|(stage, new)| core.registry.waiting_for(stage, &new));
        let mut nodes = core.registry.certificates();
        let seen = core.nodes();
        for node in &mut nodes {
            let summary = seen.iter().find(|it| it.name == node.node);
            node.connected = summary.is_some_and(|it| match node.role {
                shared::ids::Role::Agent => it.agent_connected,
                shared::ids::Role::Gateway | shared::ids::Role::Scheduler => it.gateway_connected,
            });
        }
        (waiting.unwrap_or_default(), nodes)
    });
    let (waiting_for, nodes) = looked.await?;
    let authorities = api.ca.list();
    let ends = authorities.first().map_or(0, |it| it.expires_unix);
    let (phase, next) = match rotation {
        None => (
            "steady",
            format!(
                "nothing to do: the authority is valid until {}. `stokehold ca rotate` replaces it",
                moment(ends)
            ),
        ),
        Some((RotationStage::Spreading, _)) => (
            "spreading",
            "wait: nodes learn of the new authority, which then begins to sign by itself. A node \
             that is gone for good is sent away with `stokehold node revoke NAME`"
                .to_owned(),
        ),
        Some((RotationStage::Replacing, _)) if waiting_for.is_empty() => (
            "replacing",
            "`stokehold ca finish` drops the old authority: nothing depends on it any more but \
             copies of ca.pem that people and programs keep"
                .to_owned(),
        ),
        Some((RotationStage::Replacing, _)) => (
            "replacing",
            "wait: nodes change to certificates of the new authority. A node that is gone for good \
             is sent away with `stokehold node revoke NAME`"
                .to_owned(),
        ),
    };
    Ok(Json(CaStatus {
        phase: phase.to_owned(),
        lifetime_seconds: api.lifetime.as_secs(),
        authorities,
        nodes,
        waiting_for,
        next,
    }))
}

fn refused(error: RotationError) -> Refusal {
    match error {
        RotationError::UnderWay | RotationError::None | RotationError::TooEarly => {
            ApiError::conflict(error.to_string()).into()
        }
        RotationError::Authority(_) | RotationError::Write { .. } => internal(&error),
    }
}
