//! Whole systems: real processes, real containers, real uids, real TLS.
//!
//! Every test starts a cluster of its own with `stokehold up` and takes it down again with `stokehold
//! down`; see `harness` for what each of them checks besides.

mod harness;

mod autoscale;
mod certificates;
mod clocks;
mod events;
mod faults;
mod first_hour;
mod hostile;
mod limits;
mod load;
mod main_job;
mod members;
mod mistakes;
mod mlflow_model;
mod networks;
mod operators;
mod registry;
mod rollout;
mod two_nodes;
