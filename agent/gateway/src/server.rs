//! A gateway as a value: made from options, given routes, served on listeners.
//!
//! The program (see [`crate::program`]) adds a scheduler and files; a test gives it routes directly.

use std::convert::Infallible;
use std::sync::Arc;

use daemon::credentials::Holder;
use daemon::http::{ConnectionInfo, HttpLimits, serve_tls};
use daemon::tasks::Tasks;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use shared::ids::ServedEntityId;
use shared::report::GatewayReport;
use shared::routes::Routes;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Options, State};
use crate::peers::PEER_ALPN;
use crate::table::{Accepted, Refused};
use crate::{front, peer_service, scan};

pub struct Gateway {
    pub(crate) state: Arc<State>,
    demands: Option<mpsc::Receiver<(ServedEntityId, u32)>>,
}

/// Where a gateway listens.
pub struct Listeners {
    pub client: TcpListener,
    pub client_tls: Arc<ServerConfig>,
    pub client_limits: HttpLimits,
    pub peer: TcpListener,
    pub peer_limits: HttpLimits,
}

impl Gateway {
    pub fn new(options: &Options, registry: &mut Registry) -> Result<Self, daemon::tls::TlsError> {
        let (state, demands) = State::new(options, registry)?;
        Ok(Self {
            state: Arc::new(state),
            demands: Some(demands),
        })
    }

    /// Takes over routes, if they are newer than those in use.
    pub fn apply(
        &self,
        routes: Routes,
    ) -> Result<(), impl std::error::Error + Send + Sync + use<>> {
        self.apply_routes(routes).map(|_| ())
    }

    pub(crate) fn apply_routes(&self, routes: Routes) -> Result<Accepted, Refused> {
        self.state.apply(routes)
    }

    /// The served entities for which requests wait without a replica. Once.
    pub fn take_demands(&mut self) -> Option<mpsc::Receiver<(ServedEntityId, u32)>> {
        self.demands.take()
    }

    /// What would be reported now; clears the numbers of traffic and loads.
    pub fn report(&self) -> GatewayReport {
        GatewayReport {
            routes: self
                .state
                .table()
                .map(|table| (table.routes.epoch, table.routes.revision)),
            replicas: self.state.locals.report(true),
            traffic: self.state.lanes.take_traffic(),
        }
    }

    /// Starts serving, until cancelled.
    pub fn spawn(
        &self,
        tasks: &mut Tasks,
        holder: &impl Holder,
        listeners: Listeners,
        cancel: &CancellationToken,
    ) -> Result<(), daemon::tls::TlsError> {
        let peer_tls = daemon::tls::mutual_server(holder, &[PEER_ALPN])?;
        let state = Arc::clone(&self.state);
        let make_client = move |_: &ConnectionInfo| {
            let state = Arc::clone(&state);
            service_fn(move |request: Request<Incoming>| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(front::serve(state, request).await) }
            })
        };
        let state = Arc::clone(&self.state);
        let make_peer = move |info: &ConnectionInfo| {
            let state = Arc::clone(&state);
            let subject = info.subject.clone();
            service_fn(move |request: Request<Incoming>| {
                let (state, subject) = (Arc::clone(&state), subject.clone());
                async move { Ok::<_, Infallible>(peer_service::serve(state, subject, request).await) }
            })
        };
        let clients = serve_tls(
            listeners.client,
            listeners.client_tls,
            listeners.client_limits,
            make_client,
            cancel.clone(),
        );
        // Requests that wait when the gateway stops still get their turn.
        let drained = CancellationToken::new();
        let after_clients = drained.clone().drop_guard();
        tasks.spawn("clients", async move {
            let _drained = after_clients;
            clients.await
        });
        tasks.spawn(
            "peers",
            serve_tls(
                listeners.peer,
                peer_tls,
                listeners.peer_limits,
                make_peer,
                cancel.clone(),
            ),
        );
        tasks.spawn("queues", Arc::clone(&self.state.lanes).pump(drained));
        tasks.spawn(
            "replicas",
            scan::run(Arc::clone(&self.state.locals), cancel.child_token()),
        );
        Ok(())
    }
}
