//! What every Stokehold daemon does the same way.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | reads a TOML file into a checked struct, or says which line is wrong |
//! | [`telemetry`] | logs; error chains |
//! | [`tasks`] | named, cancelled and joined tasks; the only place that spawns for a daemon's life |
//! | [`admin`] | `/metrics`, `/healthz`, `/readyz` |
//! | [`notify`] | systemd's readiness and watchdog |
//! | [`files`] | atomic writes, private folders |
//! | [`owner`] | root's commands work as the daemon's own user |
//! | [`identity`], [`ca`], [`tls`], [`join`] | certificates: who is who, and how a node becomes someone |
//! | [`credentials`], [`renew`] | the certificate in use, and how it is renewed |
//! | [`quic`], [`link`] | frames on QUIC; the session that comes back by itself |
//! | [`listen`] | listening sockets, and who holds a port that is taken |
//! | [`room`] | free space on disks |
//! | [`http`] | HTTPS listeners with their limits |
//! | [`exit`] | how a program ends: a message and a code |

pub mod admin;
pub mod ca;
pub mod config;
pub mod credentials;
pub mod exit;
pub mod files;
pub mod http;
pub mod identity;
pub mod join;
pub mod link;
pub mod listen;
pub mod notify;
pub mod owner;
pub mod quic;
pub mod renew;
pub mod room;
pub mod scheduler_call;
pub mod tasks;
pub mod telemetry;
pub mod tls;
