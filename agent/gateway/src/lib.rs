//! The gateway: takes clients' requests, finds each a replica, streams both ways, and counts.
//!
//! ```text
//! client ──TLS──► front ─► forward ─► lane (queue, balancer) ─┬─► local ──Unix socket──► replica
//!                   │                                         └─► peers ──TLS──► peer_service
//!                   └─ /api/ ─► management ──TLS──► scheduler        (another node's gateway) ─► local
//! ```
//!
//! What always holds: the path of a request touches no scheduler, agent, database or disk; a request
//! crosses at most two gateways; a replica never has more requests than its limit, which its own
//! gateway holds; a request that no replica can have begun is tried elsewhere, any other is not.
//!
//! | module | what it does | pure |
//! | --- | --- | --- |
//! | `config`, `program`, `server` | configuration, the daemon, a gateway as a value | |
//! | `front`, `forward`, `journey`, `in_flight`, `answer`, `headers`, `payload`, `memory` | a client's request | headers |
//! | `lane`, `lanes` | the way to one served entity | |
//! | `balancer`, `replicas`, `queue` | which replica, who is next | yes |
//! | `traffic`, `work`, `gauge`, `histogram` | what is counted for reports | yes |
//! | `limit`, `local`, `scan`, `probe` | the replicas of this node | probe |
//! | `attempt`, `upstream` | one try at one replica | |
//! | `peers`, `peer_service` | between gateways, both ends | |
//! | `table`, `routes_file`, `session` | routes in, reports out | |
//! | `logs`, `log_tail` | replicas' logs, for the scheduler | |
//! | `management` | `/api/`, passed to the scheduler | |

mod answer;
mod attempt;
mod balancer;
mod clock;
pub mod config;
mod forward;
mod front;
mod gateway;
mod gauge;
mod headers;
mod histogram;
mod in_flight;
mod journey;
mod lane;
mod lanes;
mod limit;
mod local;
mod log_tail;
mod logs;
mod management;
mod memory;
mod metrics;
mod payload;
mod peer_service;
mod peers;
mod probe;
mod program;
mod queue;
mod replicas;
mod routes_file;
mod scan;
mod server;
mod session;
mod table;
mod traffic;
mod upstream;
mod work;

use std::process::ExitCode;

pub use crate::gateway::Options;
pub use crate::server::{Gateway, Listeners};

/// The program, as `main` and test shims run it.
pub fn cli() -> ExitCode {
    daemon::exit::run(program::run)
}
