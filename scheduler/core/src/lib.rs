//! The scheduler's decisions. Pure: events and the time in; plans, routes and store writes out.

pub mod error;
pub mod registry;
pub mod store_op;
