//! A real scheduler in this process, on free ports, spoken to as nodes and people do.

mod auth;
mod certificates;
mod cluster;
mod events;
mod explain;
mod join;
mod logs;
mod models;
mod node;
mod openapi;
mod restart;
mod rollout;
mod sessions;
