//! The AutoPilot Pod Autoscaler: how many replicas a served entity should have. Pure: measurements
//! and the time in, a decision with its reason out.
//!
//! What always holds: a decision lies within its policy's bounds; nothing is scaled down before the
//! hold allows it; where nothing was measured nothing changes; more demand never asks for fewer
//! replicas.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`autoscaler`] | both axes of one served entity |
//! | [`sample`] | what they are given |
//! | [`explain`] | how a decision is told |
//! | [`horizontal`], [`vertical`] | the two axes |
//! | [`signal`] | what the horizontal axis reads out of the last seconds |
//! | [`pool`] | how many nodes or slots should stand ready ahead of claims |
//! | [`startup`] | how long a replica takes to become ready |

pub mod autoscaler;
mod block;
mod curve;
pub mod explain;
pub mod horizontal;
mod mono_millis;
pub mod pool;
pub mod sample;
pub mod signal;
pub mod startup;
pub mod vertical;

pub use autoscaler::{Autoscaler, ClassTarget, Orders, Policy};
pub use explain::Explanation;
pub use sample::{Group, HardwareClass, Resources, Sample};
pub use startup::StartupTime;
