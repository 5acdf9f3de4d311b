//! Who is connected. The control task owns this table; each session's own task writes what it finds
//! in its [`Outgoing`].
//!
//! A plan or routes that could not be sent before newer ones were made are never sent: each
//! supersedes the one before. So the queue to a session is one place for each, and never full.

use std::collections::HashMap;
use std::net::IpAddr;

use bytes::Bytes;
use quinn::Connection;
use shared::ids::{NodeName, Role};
use shared::plan::Plan;
use shared::routes::Routes;
use shared::wire::{
    Peer, PlanMessage, RoutesMessage, ServerBody, ServerFrame, close, encode_frame,
};
use tokio::sync::watch;

/// Tells a session from a later one of the same peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionId(u64);

/// What a session is to write next, encoded.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    pub plan: Option<Numbered>,
    pub routes: Option<Numbered>,
}

/// A frame with a number that grows, so that a session knows what it has sent.
#[derive(Clone, Debug)]
pub struct Numbered {
    pub number: u64,
    pub frame: Bytes,
}

struct Session {
    id: SessionId,
    connection: Connection,
    /// The boot id of its machine; empty where it tells none.
    boot: String,
    outgoing: watch::Sender<Outgoing>,
}

#[derive(Default)]
pub struct Sessions {
    by_peer: HashMap<Peer, Session>,
    last_number: u64,
}

impl Sessions {
    /// Adds a session; an older one of the same peer is closed.
    pub fn open(
        &mut self,
        peer: Peer,
        connection: Connection,
        boot: String,
    ) -> (SessionId, watch::Receiver<Outgoing>) {
        let id = SessionId(self.next_number());
        let (outgoing, receiver) = watch::channel(Outgoing::default());
        let session = Session {
            id,
            connection,
            boot,
            outgoing,
        };
        if let Some(older) = self.by_peer.insert(peer, session) {
            let reason = "another session of the same node took over";
            daemon::quic::close(&older.connection, close::REPLACED, reason);
        }
        (id, receiver)
    }

    /// Where another machine is that has a living session with this peer's identity. The same machine
    /// that comes back has the same boot id; one that was rebooted finds its old session closed, or
    /// waits until it has timed out.
    pub fn other_machine(&self, peer: &Peer, boot: &str) -> Option<IpAddr> {
        let held = self.by_peer.get(peer)?;
        let differs = !boot.is_empty() && !held.boot.is_empty() && held.boot != boot;
        let lives = held.connection.close_reason().is_none();
        (differs && lives).then(|| held.connection.remote_address().ip())
    }

    /// Whether it was the peer's newest session that ended.
    pub fn ended(&mut self, peer: &Peer, id: SessionId) -> bool {
        let newest = self
            .by_peer
            .get(peer)
            .is_some_and(|session| session.id == id);
        if newest {
            self.by_peer.remove(peer);
        }
        newest
    }

    pub fn send_plan(&mut self, plan: &Plan) {
        let peer = Peer {
            role: Role::Agent,
            node: plan.node.clone(),
        };
        let numbered = self.numbered(ServerBody::Plan(PlanMessage::from(plan)));
        if let Some(session) = self.by_peer.get(&peer) {
            session
                .outgoing
                .send_modify(|out| out.plan = Some(numbered));
        }
    }

    /// To every gateway, encoded once.
    pub fn send_routes(&mut self, routes: &Routes) {
        let numbered = self.numbered(ServerBody::Routes(RoutesMessage::from(routes)));
        let gateways = self.by_peer.iter();
        for (_, session) in gateways.filter(|(peer, _)| peer.role == Role::Gateway) {
            let numbered = numbered.clone();
            session
                .outgoing
                .send_modify(|out| out.routes = Some(numbered));
        }
    }

    pub fn send_routes_to(&mut self, gateway: &Peer, routes: &Routes) {
        let numbered = self.numbered(ServerBody::Routes(RoutesMessage::from(routes)));
        if let Some(session) = self.by_peer.get(gateway) {
            session
                .outgoing
                .send_modify(|out| out.routes = Some(numbered));
        }
    }

    pub fn close(&mut self, peer: &Peer, code: u32, reason: &str) {
        if let Some(session) = self.by_peer.get(peer) {
            daemon::quic::close(&session.connection, code, reason);
        }
    }

    /// The connection to a node's gateway, for requests.
    pub fn gateway(&self, node: &NodeName) -> Option<Connection> {
        let peer = Peer {
            role: Role::Gateway,
            node: node.clone(),
        };
        self.by_peer
            .get(&peer)
            .map(|session| session.connection.clone())
    }

    pub fn count(&self, role: Role) -> usize {
        self.by_peer.keys().filter(|peer| peer.role == role).count()
    }

    fn numbered(&mut self, body: ServerBody) -> Numbered {
        Numbered {
            number: self.next_number(),
            frame: encode_frame(&ServerFrame { body: Some(body) }).into(),
        }
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}
