//! How a node gets its certificates: the one call that needs no bearer token, but a join token.

use std::time::Duration;

use axum::extract::{Request, State};
use daemon::ca::{self, CaError};
use daemon::identity::Subject;
use scheduler_core::events::recorded as told;
use scheduler_core::registry::{JoinRefusal, Redemption};
use scheduler_core::{ApiError, Effects};
use shared::api::{JoinReply, JoinRequest};
use shared::ids::Role;
use tracing::{info, warn};

use super::Api;
use super::body::{self, Json};
use super::error::Refusal;

const MAX_NAMES: usize = 16;
/// A certificate request is a kilobyte.
const MAX_BODY_BYTES: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn join(
    State(api): State<Api>,
    request: Request,
) -> Result<Json<JoinReply>, Refusal> {
    // Anybody may call this, so it is given little.
    let reading = body::read(request.into_body(), MAX_BODY_BYTES);
    let bytes = tokio::time::timeout(BODY_TIMEOUT, reading).await;
    let bytes =
        bytes.map_err(|_| ApiError::bad_request("the request's body came too slowly"))??;
    let request: JoinRequest = body::parse(&bytes)?;
    if request.names.len() > MAX_NAMES {
        let problem = format!("names: at most {MAX_NAMES}");
        return Err(Refusal(ApiError::invalid(problem)));
    }
    let subject = Subject {
        cluster: api.ca.cluster().clone(),
        role: request.role,
        node: request.node.clone(),
    };
    let names: &[String] = match request.role {
        Role::Gateway => &request.names,
        // Nobody but the scheduler talks to an agent, and that by its own name.
        Role::Agent | Role::Scheduler => &[],
    };
    // Signed before the token is redeemed, so that a request that cannot be signed does not use the
    // token up; handed out only once the redemption is on disk.
    let key_hash = ca::request_key_hash(&request.csr_pem).map_err(unsignable)?;
    let issued = api
        .ca
        .sign(&request.csr_pem, &subject, names, api.lifetime)
        .map_err(unsignable)?;
    let until_unix = issued.until_unix;
    let described = format!("{request:?}");
    let redeemed = api.control.decide(move |core, ctx| {
        let attempt = Redemption {
            id: &request.token_id,
            secret: &request.secret,
            role: request.role,
            node: &request.node,
            key_hash: &key_hash,
            until_unix,
        };
        match core.registry.redeem(&attempt, ctx.unix_ms / 1000) {
            Ok(writes) => {
                // Nothing to write: the same request again.
                if !writes.is_empty() {
                    core.tell(told::joined(&request.node, request.role), ctx.unix_ms);
                }
                let mut effects = Effects {
                    writes,
                    ..Effects::default()
                };
                effects.merge(core.pass(ctx));
                (Ok(()), effects)
            }
            Err(refusal) => (Err(refusal), Effects::default()),
        }
    });
    if let Err(refusal) = redeemed.await? {
        warn!(request = described, %refusal, "join refused");
        return Err(refused(&refusal));
    }
    info!(role = %subject.role, node = %subject.node, "node joined");
    Ok(Json(JoinReply {
        cluster: subject.cluster,
        certificate_pem: issued.certificate_pem,
        ca_pem: api.ca.bundle_pem(),
        scheduler: api.quic_addresses.clone(),
        rest: api.http_addresses.clone(),
    }))
}

pub(super) fn unsignable(error: CaError) -> Refusal {
    let field = match error {
        CaError::Name { .. } => "names",
        CaError::Request(_) | CaError::Io { .. } | CaError::Invalid { .. } => "csr_pem",
    };
    Refusal(ApiError::invalid(format!("{field}: {error}")))
}

fn refused(refusal: &JoinRefusal) -> Refusal {
    let message = refusal.to_string();
    Refusal(match refusal {
        JoinRefusal::Unknown { .. } | JoinRefusal::WrongSecret { .. } => {
            ApiError::unauthenticated(message)
        }
        JoinRefusal::Expired { .. }
        | JoinRefusal::WrongRole { .. }
        | JoinRefusal::WrongNode { .. }
        | JoinRefusal::Used { .. }
        | JoinRefusal::Revoked { .. }
        | JoinRefusal::Taken { .. } => ApiError::forbidden(message),
        JoinRefusal::TooLarge { .. } => ApiError::too_large(message),
    })
}
