//! Connects to a replica that listens on TCP.
//!
//! The address comes from the agent's own file. It is one on this node, so that whoever is there
//! answers at once, and a full second of silence means that nobody is.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use shared::ids::ReplicaId;
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpError {
    /// As every replica is before its server listens.
    #[error(
        "replica {replica} does not listen on port {} of its interface (yet): it must listen on \
         0.0.0.0, not on loopback",
        address.port()
    )]
    NotYet {
        replica: ReplicaId,
        address: SocketAddr,
    },
    #[error("replica {replica} at {address} does not answer within {CONNECT_TIMEOUT:?}")]
    TimedOut {
        replica: ReplicaId,
        address: SocketAddr,
    },
    #[error("connect to replica {replica} at {address}")]
    Connect {
        replica: ReplicaId,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

pub(crate) async fn connect(
    replica: &ReplicaId,
    address: SocketAddr,
) -> Result<TcpStream, TcpError> {
    let replica = || replica.clone();
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
    let connected = match connecting.await {
        Ok(connected) => connected.and_then(|stream| {
            // A request's head and its body must not wait for each other.
            stream.set_nodelay(true)?;
            Ok(stream)
        }),
        Err(_) => {
            return Err(TcpError::TimedOut {
                replica: replica(),
                address,
            });
        }
    };
    connected.map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => TcpError::NotYet {
            replica: replica(),
            address,
        },
        _ => TcpError::Connect {
            replica: replica(),
            address,
            source,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn one_that_listens_is_connected_and_one_that_does_not_is_told_where_to() {
        let id = ReplicaId::from_bits(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("address");
        connect(&id, address).await.expect("connected");
        drop(listener);
        let error = connect(&id, address).await.expect_err("nobody listens");
        assert!(matches!(error, TcpError::NotYet { .. }), "{error}");
        assert!(error.to_string().contains("0.0.0.0"), "{error}");
    }
}
