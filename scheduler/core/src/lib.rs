//! The scheduler's decisions. Pure: events and the time in; plans, routes and store writes out.
//!
//! What always holds: no clock, no chance and no I/O of its own; the same events at the same times
//! give the same effects. What is in memory is either in the store too (after the effects' writes),
//! or was observed and will be again.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`core`] | the state, and the door to it |
//! | [`events`] | what happened, for people to read |
//! | [`event`] | what goes in and what comes out |
//! | `observed` | events change what was observed |
//! | `settle` | the pass that moves the fleet; its steps are below |
//! | `replica` and its `lifecycle`, `set`, `node`, `endpoint` | what the fleet consists of |
//! | `rollout`, `resize`, [`placement`] | what is wanted, how many, and where |
//! | `traffic`, `measured` | what gateways and agents measured, as the autoscaler is given it |
//! | `axes`, `scaling`, `learned`, `history`, `explain` | the autoscaler of each set, what it learned and did |
//! | `pool` | how many nodes should hold a runtime's image ahead of need |
//! | `plans`, `routes`, `images` | what nodes and gateways are told; what nodes are to hold |
//! | `commands`, `validate`, `views`, `describe` | the REST API's side |
//! | `records`, `restore`, [`store_op`] | the store's side |
//! | [`registry`] | models, images, nodes and tokens: records, no behaviour |

mod axes;
mod commands;
pub mod core;
mod describe;
mod endpoint;
pub mod error;
pub mod event;
pub mod events;
mod explain;
mod history;
mod images;
mod learned;
mod lifecycle;
mod measured;
mod node;
mod observed;
pub mod placement;
mod plans;
mod pool;
mod records;
pub mod registry;
mod replica;
mod resize;
mod restore;
mod rollout;
mod routes;
mod scaling;
mod set;
pub mod settings;
mod settle;
pub mod store_op;
mod traffic;
mod validate;
mod views;

pub use crate::core::{Census, Core};
pub use error::ApiError;
pub use event::{Ctx, Effects, Event, Level, Note};
pub use explain::SeriesQuery;
pub use settings::{Settings, WorkloadType};
pub use store_op::RestoreError;
