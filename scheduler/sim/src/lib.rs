//! The autoscaler's simulator: traffic and a modelled replica in, what each policy would have done
//! out. Virtual time; the code that decides is the code that production runs.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`trace`], [`synth`] | traffic, read or made |
//! | [`plant`] | a replica's service time, start-up, noise and resources |
//! | [`record`], [`fit`] | a recorded run of a real endpoint, and the plant that behaves like it |
//! | [`engine`], [`fleet`] | the closed loop, and the nodes under it |
//! | [`policy`], [`compare`] | what scales, and several of them on one scenario |
//! | [`measure`] | what it came to |
//! | [`stdio`] | our autoscaler for a plant that an outside program owns |

mod chance;
pub mod compare;
pub mod engine;
pub mod fit;
pub mod fleet;
pub mod measure;
pub mod plant;
pub mod policy;
pub mod pool;
pub mod record;
pub mod span;
pub mod stdio;
pub mod synth;
pub mod trace;
