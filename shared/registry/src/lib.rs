//! Asks OCI registries for manifests and blobs.
//!
//! Speaks the distribution specification's pull side (and Docker's, which it grew from) over HTTPS, with
//! `hosts.toml` as containerd's users know it ([`hosts`]) and credentials in the form of Docker's
//! `config.json` ([`auth`]).
//!
//! What always holds: every body and every wait is bounded; what is returned whole has the digest that was
//! asked for; a secret goes to its own host, and to the token service that this host names, and nowhere
//! else, redirects included; plain HTTP is spoken only where `hosts.toml` says `http://`, and to this
//! machine itself.
//!
//! Why not an OCI client crate: those looked at know one URL (`https://HOST/v2/`), one set of
//! certificates and no headers for all hosts, which leaves no room for mirrors, `override_path` and
//! `header`, and read bodies without a bound.
//!
//! Not here: what manifests mean (`model::oci`), and where blobs go.

pub mod auth;
pub mod challenge;
mod client;
mod error;
pub mod hosts;
mod reference;
mod token;

pub use client::{Access, Blob, Client, MAX_MANIFEST_BYTES, Manifest};
pub use error::{Kind, PullError};
pub use reference::{InvalidReference, Reference, Version};
