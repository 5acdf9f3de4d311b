//! The words that all parts of Stokehold share. Pure: no clock, no I/O, no locks, no randomness.
//!
//! What always holds: a value of a type in this crate is valid. Names are parsed once, at the edge
//! (REST body, wire frame, config file, command line), and inside the program an invalid name, an
//! infinite concurrency or a manifest that leaves its folder cannot exist.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`ids`] | names and ids: endpoint, entity, node, replica, cluster, epoch, revision |
//! | [`units`] | bytes, concurrency, percentages, [`units::MonoTime`] |
//! | [`digest`] | BLAKE3 digests of chunks, files and manifests; OCI sha256 digests |
//! | [`egress`] | where a replica may connect to of itself |
//! | [`manifest`] | what a model is: files, chunks, description; canonical form and id |
//! | [`runtime`] | runtime templates and the container they make |
//! | [`spec`] | what people ask for: endpoints, served entities, scaling bounds |
//! | [`plan`] | what the scheduler wants of one node |
//! | [`routes`] | what the scheduler tells gateways |
//! | [`report`] | what agents and gateways observe |
//! | [`wire`] | all of that as length-prefixed protobuf frames |
//! | [`api`] | the JSON of the REST API |
//! | [`mistake`] | words for what is wrong in a configuration file or a request's body |
//! | [`token`] | join tokens and bearer tokens: text forms and hashes |

pub mod api;
pub mod digest;
pub mod egress;
pub mod ids;
pub mod manifest;
mod misnomer;
pub mod mistake;
pub mod plan;
pub mod report;
pub mod routes;
pub mod runtime;
pub mod spec;
pub mod token;
pub mod units;
pub mod wire;
