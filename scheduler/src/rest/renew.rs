//! How a node's certificate is renewed: without a token, by whoever holds the key.

use std::time::Duration;

use axum::extract::{Request, State};
use daemon::ca;
use daemon::credentials::extra_names;
use daemon::identity::{self, Subject, certificates_in, moment, validity_of};
use scheduler_core::events::recorded as told;
use scheduler_core::registry::{RenewalAttempt, RenewalRefusal};
use scheduler_core::{ApiError, Effects};
use shared::api::certificates::{RenewReply, RenewRequest};
use shared::ids::Role;
use tracing::{info, warn};

use super::Api;
use super::body::{self, Json};
use super::error::Refusal;
use super::join::unsignable;

/// Certificate and request are two kilobytes.
const MAX_BODY_BYTES: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn renew(
    State(api): State<Api>,
    request: Request,
) -> Result<Json<RenewReply>, Refusal> {
    // Anybody may call this, so it is given little, and nothing reaches the control task before the
    // certificate was found to be one of ours.
    let reading = body::read(request.into_body(), MAX_BODY_BYTES);
    let bytes = tokio::time::timeout(BODY_TIMEOUT, reading).await;
    let bytes =
        bytes.map_err(|_| ApiError::bad_request("the request's body came too slowly"))??;
    let request: RenewRequest = body::parse(&bytes)?;
    let subject = Subject {
        cluster: api.ca.cluster().clone(),
        role: request.role,
        node: request.node.clone(),
    };
    if subject.role == Role::Scheduler {
        return Err(ApiError::invalid("role: a scheduler renews its own certificate").into());
    }
    let invalid = |field: &str, problem: String| ApiError::invalid(format!("{field}: {problem}"));
    let field = "certificate_pem";
    let chain = certificates_in(request.certificate_pem.as_bytes());
    let chain = chain.map_err(|e| invalid(field, e))?;
    let held = &chain[0];
    let unreadable = |e: identity::IdentityError| invalid(field, e.to_string());
    if identity::subject_of(held).map_err(unreadable)? != subject {
        let problem = "it is not the certificate of that role of that node in this cluster";
        return Err(invalid(field, problem.to_owned()).into());
    }
    if api.ca.issuer_of(held, &subject).is_none() {
        return Err(ApiError::forbidden(format!(
            "the certificate was signed by no authority that this cluster trusts now: join again \
             with a token from `stokehold node token --replace {}`",
            subject.node
        ))
        .into());
    }
    let key_hash = ca::request_key_hash(&request.csr_pem).map_err(unsignable)?;
    if identity::key_hash_of(held).map_err(unreadable)? != key_hash {
        let problem = "a certificate is renewed for its own key only; for another one join again";
        return Err(ApiError::forbidden(problem).into());
    }
    let names = extra_names(held).map_err(unreadable)?;
    let not_after_unix = validity_of(held).map_err(unreadable)?.not_after;
    let issued = api
        .ca
        .sign(&request.csr_pem, &subject, &names, api.lifetime)
        .map_err(unsignable)?;
    let until_unix = issued.until_unix;
    let Subject { role, node, .. } = subject.clone();
    let renewed = api.control.decide(move |core, ctx| {
        let attempt = RenewalAttempt {
            role,
            node: &node,
            key_hash: &key_hash,
            not_after_unix,
            until_unix,
        };
        match core.registry.renew(&attempt, ctx.unix_ms / 1000) {
            Ok(writes) => {
                let until = moment(until_unix);
                core.tell(told::renewed(&node, role, &until), ctx.unix_ms);
                let effects = Effects {
                    writes,
                    ..Effects::default()
                };
                (Ok(()), effects)
            }
            Err(refusal) => (Err(refusal), Effects::default()),
        }
    });
    let (role, node) = (subject.role, &subject.node);
    if let Err(refusal) = renewed.await? {
        // Haste harms nobody, and whoever is refused comes back.
        if matches!(refusal, RenewalRefusal::TooSoon { .. }) {
            return Err(ApiError::too_many(refusal.to_string()).into());
        }
        warn!(%role, %node, %refusal, "renewal refused");
        return Err(ApiError::forbidden(refusal.to_string()).into());
    }
    info!(%role, %node, until = moment(until_unix), "certificate renewed");
    Ok(Json(RenewReply {
        certificate_pem: issued.certificate_pem,
        ca_pem: api.ca.bundle_pem(),
    }))
}
