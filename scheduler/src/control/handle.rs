//! How everyone else reaches the control task.

use std::net::IpAddr;

use quinn::Connection;
use scheduler_core::registry::{SessionRefusal, Shown};
use scheduler_core::{Core, Effects, Event};
use shared::ids::{Epoch, NodeName};
use shared::wire::{Peer, close};
use tokio::sync::{mpsc, oneshot, watch};

use super::Context;
use crate::sessions::{Outgoing, SessionId};

/// No scheduler gave out an epoch so far ahead of ours: whoever claims it is wrong.
const MAX_EPOCH_LEAD: u64 = 1 << 32;

/// The control task has ended; the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scheduler is stopping")]
pub struct Stopping;

/// A peer that has shown its certificate and said hello.
pub struct Newcomer {
    pub peer: Peer,
    pub connection: Connection,
    /// What its certificate shows, and whom it trusts.
    pub shown: Shown,
    /// The boot id of its machine; empty where it tells none.
    pub boot: String,
    /// A gateway's addresses for other gateways and for clients.
    pub peer_address: String,
    pub client_address: String,
}

/// A session that the core knows of.
pub struct Admitted {
    pub id: SessionId,
    pub outgoing: watch::Receiver<Outgoing>,
}

/// Why a peer with a valid certificate gets no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Certificate(#[from] SessionRefusal),
    #[error(
        "another machine, at {other}, has a session with the identity of {peer}: the identity was \
         copied, as with the disk of a virtual machine. Each machine needs its own: on the copy \
         delete its pki folder and join it under another name (`--node NAME`)"
    )]
    Copied { peer: Peer, other: IpAddr },
}

impl Refused {
    /// Of `shared::wire::close`.
    pub fn code(&self) -> u32 {
        match self {
            Self::Certificate(SessionRefusal::Revoked { .. }) => close::REVOKED,
            Self::Certificate(SessionRefusal::OtherKey { .. }) => close::OTHER_KEY,
            Self::Copied { .. } => close::COPIED,
        }
    }
}

pub(super) type Decide = Box<dyn FnOnce(&mut Core, &mut Context<'_>) -> (Effects, Answer) + Send>;
/// Hands a result to its asker, once the round is committed.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

pub(super) enum Command {
    Tick,
    Decide(Decide),
    Event(Box<Event>),
    Arrived(Box<Newcomer>, oneshot::Sender<Result<Admitted, Refused>>),
    Left(Peer, SessionId),
    Gateway(NodeName, oneshot::Sender<Option<Connection>>),
    EpochSeen(Epoch),
}

/// How everyone else reaches the core.
#[derive(Clone)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) epoch: Epoch,
    pub(super) events: watch::Receiver<u64>,
}

impl Handle {
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The number of the last event that may be shown, as it grows.
    pub fn events(&self) -> watch::Receiver<u64> {
        self.events.clone()
    }

    /// Runs `decide` in the control task and returns its result once its writes are on disk.
    pub async fn decide<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Core, &mut Context<'_>) -> (T, Effects) + Send + 'static,
    ) -> Result<T, Stopping> {
        let (send, receive) = oneshot::channel();
        let decide: Decide = Box::new(move |core, ctx| {
            let (result, effects) = decide(core, ctx);
            // An asker that no longer waits has gone; what it asked for is done.
            (effects, Box::new(move || drop(send.send(result))))
        });
        self.send(Command::Decide(decide)).await?;
        receive.await.map_err(|_| Stopping)
    }

    /// Looks at the core without changing it.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core) -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        self.decide(|core, _| (look(core), Effects::default()))
            .await
    }

    pub async fn event(&self, event: Event) -> Result<(), Stopping> {
        self.send(Command::Event(Box::new(event))).await
    }

    pub async fn arrived(&self, newcomer: Newcomer) -> Result<Result<Admitted, Refused>, Stopping> {
        let (send, receive) = oneshot::channel();
        self.send(Command::Arrived(Box::new(newcomer), send))
            .await?;
        receive.await.map_err(|_| Stopping)
    }

    pub async fn left(&self, peer: Peer, id: SessionId) -> Result<(), Stopping> {
        self.send(Command::Left(peer, id)).await
    }

    /// The connection to a node's gateway; `None` while it has no session.
    pub async fn gateway(&self, node: &NodeName) -> Result<Option<Connection>, Stopping> {
        let (send, receive) = oneshot::channel();
        self.send(Command::Gateway(node.clone(), send)).await?;
        receive.await.map_err(|_| Stopping)
    }

    /// A peer has seen an epoch above ours: this store is an old copy, and the process restarts
    /// with a higher one. `false` for an epoch that cannot be.
    pub async fn epoch_seen(&self, epoch: Epoch) -> Result<bool, Stopping> {
        if epoch.0.saturating_sub(self.epoch.0) > MAX_EPOCH_LEAD {
            return Ok(false);
        }
        self.send(Command::EpochSeen(epoch)).await?;
        Ok(true)
    }

    async fn send(&self, command: Command) -> Result<(), Stopping> {
        self.commands.send(command).await.map_err(|_| Stopping)
    }
}
