//! The QUIC listener: who may connect, and the tasks of each connection.
//!
//! TLS has let nobody in without a certificate of this cluster's CA. What is left to check is the
//! certificate's cluster and role, whether the node was revoked, and the protocol's version; a
//! refusal closes the connection with a code of `shared::wire::close` and a reason for people.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use daemon::identity::{IdentityError, Subject, key_hash_of, subject_of, validity_of};
use daemon::quic;
use daemon::telemetry::Chain;
use quinn::{Connection, Endpoint, Incoming};
use scheduler_core::registry::Shown;
use shared::ids::{ClusterId, Role};
use shared::wire::{Peer, close};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::authorities::Authorities;
use crate::chunks::Chunks;
use crate::control::Handle;
use crate::session;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Agents and gateways of 10,000 nodes, and as many again that reconnect.
const MAX_CONNECTIONS: usize = 40_000;
/// After this the closing frames have left.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// What each connection's task needs.
pub struct Shared {
    pub authorities: Authorities,
    pub control: Handle,
    pub chunks: Chunks,
    refusals: RefusalLog,
}

impl Shared {
    pub(crate) fn new(authorities: Authorities, control: Handle, chunks: Chunks) -> Self {
        Self {
            authorities,
            control,
            chunks,
            refusals: RefusalLog::default(),
        }
    }
}

/// Why a connection was closed by us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: u32,
    pub reason: String,
}

impl Refusal {
    pub fn new(code: u32, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

/// Accepts until cancelled, then tells everyone to come back later.
pub async fn run(
    endpoint: Endpoint,
    shared: Arc<Shared>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    let handshakes = Arc::new(Semaphore::new(quic::RETRY_ABOVE));
    loop {
        while connections.try_join_next().is_some() {}
        let incoming = tokio::select! {
            () = cancel.cancelled() => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            anyhow::bail!("the QUIC endpoint has closed by itself");
        };
        if connections.len() >= MAX_CONNECTIONS {
            incoming.refuse();
            continue;
        }
        // Under a flood a client must show that its address is its own before it costs anything.
        let handshake = Arc::clone(&handshakes).try_acquire_owned().ok();
        if handshake.is_none() && incoming.may_retry() {
            // It cannot fail where it may be sent.
            let _ = incoming.retry();
            continue;
        }
        connections.spawn(serve(incoming, handshake, Arc::clone(&shared)));
    }
    endpoint.close(close::GOING_AWAY.into(), b"the scheduler stops");
    let _ = tokio::time::timeout(CLOSE_GRACE, endpoint.wait_idle()).await;
    Ok(())
}

async fn serve(incoming: Incoming, handshake: Option<OwnedSemaphorePermit>, shared: Arc<Shared>) {
    let address = incoming.remote_address().ip();
    let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming).await;
    drop(handshake);
    let connection = match connected {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let reason = quic::reason_of(&error);
            shared.refusals.note(Who::Address(address), &reason);
            return;
        }
        Err(_) => {
            debug!(%address, "QUIC handshake took too long");
            return;
        }
    };
    let admitted = match admit(&connection, &shared.authorities) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            shared.refusals.note(Who::Address(address), &refusal.reason);
            quic::close(&connection, refusal.code, &refusal.reason);
            return;
        }
    };
    let peer = admitted.peer.clone();
    match session::run(&connection, admitted, &shared).await {
        Ok(reason) => info!(%peer, %address, reason, "session ended"),
        Err(refusal) => {
            quic::close(&connection, refusal.code, &refusal.reason);
            shared.refusals.note(Who::Peer(peer), &refusal.reason);
        }
    }
}

/// A peer with what its certificate shows.
pub(crate) struct Certified {
    pub(crate) peer: Peer,
    pub(crate) shown: Shown,
}

/// Who it is, by the certificate alone.
fn admit(connection: &Connection, authorities: &Authorities) -> Result<Certified, Refusal> {
    let unfit = |e: IdentityError| Refusal::new(close::WRONG_ROLE, Chain(&e).to_string());
    let certificate = quic::peer_certificate(connection).map_err(unfit)?;
    let subject = subject_of(&certificate).map_err(unfit)?;
    let peer = peer_of(subject.clone(), authorities.cluster())?;
    let shown = Shown {
        key_hash: key_hash_of(&certificate).map_err(unfit)?,
        issuer: authorities
            .issuer_of(&certificate, &subject)
            .unwrap_or_default(),
        not_after_unix: validity_of(&certificate).map_err(unfit)?.not_after,
        // Its hello says.
        trusts: BTreeSet::new(),
    };
    Ok(Certified { peer, shown })
}

fn peer_of(subject: Subject, cluster: &ClusterId) -> Result<Peer, Refusal> {
    if subject.cluster != *cluster {
        return Err(Refusal::new(
            close::OTHER_CLUSTER,
            format!(
                "the certificate is of cluster {}, this is {cluster}: join this node again",
                subject.cluster
            ),
        ));
    }
    match subject.role {
        Role::Agent | Role::Gateway => Ok(Peer {
            role: subject.role,
            node: subject.node,
        }),
        Role::Scheduler => Err(Refusal::new(
            close::WRONG_ROLE,
            "a scheduler's certificate opens no session: use an agent's or a gateway's",
        )),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Address(IpAddr),
    Peer(Peer),
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Who::Address(address) => address.fmt(f),
            Who::Peer(peer) => peer.fmt(f),
        }
    }
}

/// Logs a refused peer once a minute: it comes back each few seconds.
#[derive(Default)]
struct RefusalLog {
    /// The lock is held for a look-up.
    last: Mutex<HashMap<Who, Instant>>,
}

impl RefusalLog {
    const INTERVAL: Duration = Duration::from_secs(60);
    /// More are those of somebody who makes up addresses.
    const REMEMBERED: usize = 1024;

    fn note(&self, who: Who, reason: &str) {
        if self.is_due(&who, Instant::now()) {
            warn!(peer = %who, reason, "connection refused");
        } else {
            debug!(peer = %who, reason, "connection refused");
        }
    }

    fn is_due(&self, who: &Who, now: Instant) -> bool {
        let mut last = self.last.lock().expect("no code panics under this lock");
        last.retain(|_, at| now.saturating_duration_since(*at) < Self::INTERVAL);
        if last.contains_key(who) || last.len() >= Self::REMEMBERED {
            return false;
        }
        last.insert(who.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::NodeName;

    fn subject(role: Role, cluster: u128) -> Subject {
        Subject {
            cluster: ClusterId::from_bits(cluster),
            role,
            node: NodeName::parse("n1").expect("valid"),
        }
    }

    #[test]
    fn only_agents_and_gateways_of_this_cluster_get_a_session() {
        let ours = ClusterId::from_bits(1);
        assert!(peer_of(subject(Role::Agent, 1), &ours).is_ok());
        assert!(peer_of(subject(Role::Gateway, 1), &ours).is_ok());
        let scheduler = peer_of(subject(Role::Scheduler, 1), &ours).expect_err("refused");
        assert_eq!(scheduler.code, close::WRONG_ROLE);
        let foreign = peer_of(subject(Role::Agent, 2), &ours).expect_err("refused");
        assert_eq!(foreign.code, close::OTHER_CLUSTER);
    }

    #[test]
    fn a_refused_peer_is_logged_once_a_minute() {
        let log = RefusalLog::default();
        let who = Who::Address([127, 0, 0, 1].into());
        let start = Instant::now();
        assert!(log.is_due(&who, start));
        assert!(!log.is_due(&who, start + Duration::from_secs(59)));
        assert!(log.is_due(&who, start + Duration::from_secs(60)));
    }
}
