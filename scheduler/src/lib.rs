//! The `stokehold-scheduler` daemon: a shell around `scheduler_core`.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | `scheduler.toml` |
//! | [`state`] | what is on disk before anything runs: certificates, first token |
//! | `authorities`, `certificates` | the certificate authority and its rotation; renewals |
//! | [`templates`] | runtime templates |
//! | [`boot`] | puts the parts together |
//! | [`store`] | records on disk |
//! | [`room`] | what happens when that disk is full |
//! | [`control`] | the one task that owns the core: decides, commits, then acts |
//! | [`sessions`], [`session`], [`listener`] | agents and gateways, over QUIC |
//! | [`chunks`] | the chunk store: what agents fetch, what is collected |
//! | [`images`] | asks registries what references mean |
//! | [`rest`], [`https`] | the REST API |
//! | [`metrics`] | `stokehold_scheduler_*` |

mod authorities;
pub mod boot;
mod certificates;
pub mod chunks;
mod cli;
pub mod config;
pub mod control;
mod https;
mod images;
pub mod listener;
pub mod metrics;
pub mod rest;
pub mod room;
mod session;
pub mod sessions;
mod state;
pub mod store;
mod templates;

use std::process::ExitCode;

/// The program.
pub fn cli() -> ExitCode {
    cli::run()
}
