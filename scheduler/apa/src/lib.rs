//! The AutoPilot Pod Autoscaler: how many replicas a served entity should have. Pure: measurements
//! and the time in, a decision with its reason out.
//!
//! What always holds: a decision lies within its policy's bounds; nothing is scaled down before the
//! hold allows it; where nothing was measured nothing changes; more demand never asks for fewer
//! replicas.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`horizontal`] | the horizontal axis: replicas from demand |
//! | [`window`] | the last seconds of a measured concurrency |
//! | [`startup`] | how long a replica takes to become ready |

pub mod horizontal;
mod mono_millis;
pub mod startup;
pub mod window;

pub use horizontal::{Bound, Decision, HorizontalPolicy, Inputs, Observation, State};
pub use startup::StartupTime;
pub use window::DemandWindow;
