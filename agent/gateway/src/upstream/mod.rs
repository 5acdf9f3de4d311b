//! Connections to where requests go: replicas of this node over Unix sockets or TCP, other gateways over
//! TLS.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`socket`] | opens a replica's socket so that no swapped link can redirect it |
//! | [`tcp`] | connects to a replica that listens on TCP |
//! | [`meter`] | counts the bytes of a connection, to know what the other end can have seen |
//! | [`pool`] | idle connections of one place, last in, first out |
//! | [`exchange`] | sends one request on a connection and says what became of it |

pub(crate) mod exchange;
pub(crate) mod meter;
pub(crate) mod pool;
pub(crate) mod socket;
pub(crate) mod tcp;
