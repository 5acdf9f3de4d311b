//! QUIC between machines: mutual TLS 1.3, frames, request streams.
//!
//! Not here: who may do what (the scheduler decides by [`peer_subject`]) and reconnecting
//! ([`crate::link`]).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use shared::wire::{ALPN, MAX_FRAME_BYTES, StreamReply, StreamRequest, encode_frame};

use crate::credentials::Holder;
use crate::identity::{Identity, IdentityError, Subject, subject_of};
use crate::tls::{self, LastRefusal, TlsError};

/// A peer that says nothing for this long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Keeps NAT bindings and the idle timer alive.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Chunks of several models at once, and logs.
const MAX_STREAMS: u32 = 128;
/// 16 MiB in flight fill 10 Gbit/s at 10 ms.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Handshakes under way; beyond [`RETRY_ABOVE`] a client must prove its address first.
const MAX_INCOMING: usize = 1024;
pub const RETRY_ABOVE: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("TLS settings do not allow QUIC")]
    NoInitialCipherSuite,
    #[error("listen on UDP {listen}")]
    Bind {
        listen: SocketAddr,
        #[source]
        source: io::Error,
    },
}

pub fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("10 s fit a VarInt")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None);
    transport
}

/// A listener that accepts nobody without a certificate of the same CA.
pub fn server_endpoint(
    listen: SocketAddr,
    holder: &impl Holder,
) -> Result<Endpoint, EndpointError> {
    let socket = std::net::UdpSocket::bind(listen)
        .map_err(|source| EndpointError::Bind { listen, source })?;
    server_endpoint_on(socket, holder)
}

/// The same on a socket that is bound already.
pub fn server_endpoint_on(
    socket: std::net::UdpSocket,
    holder: &impl Holder,
) -> Result<Endpoint, EndpointError> {
    let listen = socket
        .local_addr()
        .unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
    let identity = holder.credentials()?.identity();
    let tls = tls::mutual_server(holder, &[ALPN])?;
    let crypto =
        QuicServerConfig::try_from(tls).map_err(|_| EndpointError::NoInitialCipherSuite)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport()))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(4 << 20);
    let bind = |source| EndpointError::Bind { listen, source };
    let runtime = quinn::default_runtime()
        .ok_or_else(|| bind(io::Error::other("no async runtime is running")))?;
    Endpoint::new(restartable(&identity), Some(config), socket, runtime).map_err(bind)
}

/// After a restart a listener must be able to tell its old peers at once that their connections are
/// gone; otherwise each waits for its idle time-out. That takes a stateless reset key and connection
/// ids that are the same as before, so both follow from the identity's private key.
fn restartable(identity: &Identity) -> EndpointConfig {
    let derived = |purpose: &[u8]| {
        let mut hash = Sha256::new();
        hash.update(purpose);
        hash.update(identity.key.secret_der());
        <[u8; 32]>::from(hash.finalize())
    };
    let reset = derived(b"stokehold quic stateless reset");
    let ids = derived(b"stokehold quic connection ids");
    let ids = u64::from_le_bytes(std::array::from_fn(|i| ids[i]));
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(
        ring::hmac::HMAC_SHA256,
        &reset,
    )));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

/// An endpoint that opens connections as `holder`.
pub fn client_endpoint(
    holder: &impl Holder,
    remote: SocketAddr,
) -> Result<Endpoint, EndpointError> {
    Ok(client_endpoint_noting(holder, remote)?.0)
}

pub(crate) fn client_endpoint_noting(
    holder: &impl Holder,
    remote: SocketAddr,
) -> Result<(Endpoint, LastRefusal), EndpointError> {
    let listen: SocketAddr = if remote.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let (tls, refusal) = tls::mutual_client_noting(holder, &[ALPN])?;
    let crypto =
        QuicClientConfig::try_from(tls).map_err(|_| EndpointError::NoInitialCipherSuite)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    let mut endpoint =
        Endpoint::client(listen).map_err(|source| EndpointError::Bind { listen, source })?;
    endpoint.set_default_client_config(config);
    Ok((endpoint, refusal))
}

/// Who is at the other end, as its certificate says. TLS has verified the certificate.
pub fn peer_subject(connection: &Connection) -> Result<Subject, IdentityError> {
    subject_of(&peer_certificate(connection)?)
}

/// The certificate of the other end. TLS has verified it.
pub fn peer_certificate(connection: &Connection) -> Result<CertificateDer<'static>, IdentityError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(IdentityError::NoSubject)?;
    chain.into_iter().next().ok_or(IdentityError::NoSubject)
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("stream ended")]
    Write(#[from] quinn::WriteError),
    #[error("stream ended in the middle of a frame")]
    Read(#[from] quinn::ReadExactError),
    #[error("frame of {len} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLarge { len: usize },
    #[error("frame is not a valid message")]
    Decode(#[from] prost::DecodeError),
}

pub async fn write_frame(
    stream: &mut SendStream,
    message: &impl Message,
) -> Result<(), FrameError> {
    stream.write_all(&encode_frame(message)).await?;
    Ok(())
}

/// The next frame, `None` when the stream ended before one began. Not cancel-safe: a dropped read
/// loses its place.
pub async fn read_frame<M: Message + Default>(
    stream: &mut RecvStream,
) -> Result<Option<M>, FrameError> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let len = u32::from_be_bytes(length) as usize;
    if len > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge { len });
    }
    // Grows with what arrives: a length alone reserves nothing.
    let mut body = Vec::new();
    while body.len() < len {
        let start = body.len();
        body.resize(len.min(start + (256 << 10)), 0);
        stream.read_exact(&mut body[start..]).await?;
    }
    Ok(Some(M::decode(body.as_slice())?))
}

#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("open a stream")]
    Open(#[from] quinn::ConnectionError),
    #[error("exchange a request")]
    Frame(#[from] FrameError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the other end closed the stream without an answer")]
    NoAnswer,
    #[error("{message}")]
    Refused { message: String, not_found: bool },
}

/// Sends one request on a stream of its own; the bytes of a successful answer follow on the
/// returned stream, which the caller reads with a time-out of its own.
pub async fn request(
    connection: &Connection,
    request: &StreamRequest,
    timeout: Duration,
) -> Result<(StreamReply, RecvStream), RequestError> {
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        write_frame(&mut send, request).await?;
        // Fails only when the other end has reset the stream, which the read below reports.
        let _ = send.finish();
        let reply: StreamReply = read_frame(&mut receive)
            .await?
            .ok_or(RequestError::NoAnswer)?;
        Ok::<_, RequestError>((reply, receive))
    };
    let (reply, receive) = tokio::time::timeout(timeout, exchange)
        .await
        .map_err(|_| RequestError::Timeout(timeout))??;
    if reply.error.is_empty() {
        Ok((reply, receive))
    } else {
        Err(RequestError::Refused {
            message: reply.error,
            not_found: reply.not_found,
        })
    }
}

/// Closes a connection with one of `shared::wire::close`'s codes and a reason for people.
pub fn close(connection: &Connection, code: u32, reason: &str) {
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}

/// Why a connection ended, for people.
pub fn reason_of(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        quinn::ConnectionError::ConnectionClosed(close) => {
            let text = close.to_string();
            if text.contains("certificate") || text.contains("UnknownIssuer") {
                format!("the other end refused this certificate: {text}")
            } else {
                text
            }
        }
        other => other.to_string(),
    }
}
