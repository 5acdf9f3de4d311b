//! The calls to containerd that the agent makes, each with a time-out.
//!
//! No policy: what to call and when is decided elsewhere. A call that got no answer says so
//! ([`CallError::outcome_unknown`]): it may or may not have happened, and whoever made it looks before
//! acting again.

pub mod containers;
pub mod content;
pub mod events;
pub mod images;
pub mod snapshots;
pub mod tasks;
pub mod transfer;
mod turns;

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::tonic;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use turns::Turns;

/// Calls that read or write containerd's own records.
pub const QUICK: Duration = Duration::from_secs(10);
/// Calls that start or end processes: runc is started for them, and a loaded machine is slow.
pub const SLOW: Duration = Duration::from_secs(60);
/// Applying one layer: gigabytes on a slow disk.
pub const UNPACK: Duration = Duration::from_secs(1800);

/// A thousand containers make a list of 8 MB; tonic's own limit is 4 MiB.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

#[derive(Clone)]
pub struct Containerd {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    namespace_text: String,
    snapshotter: String,
    /// Leases, blobs and layers that an import is at.
    imports: Turns,
}

#[derive(Debug, thiserror::Error)]
#[error("connect to containerd at {}", socket.display())]
pub struct ConnectError {
    socket: PathBuf,
    #[source]
    source: tonic::transport::Error,
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("containerd's {call} gave no answer within {after:?}")]
    TimedOut { call: &'static str, after: Duration },
    #[error("containerd's {call}: {}", status.message())]
    Refused {
        call: &'static str,
        status: Box<Status>,
    },
    #[error("containerd's {call} answered without {missing}")]
    Incomplete {
        call: &'static str,
        missing: &'static str,
    },
}

impl CallError {
    fn code(&self) -> Option<Code> {
        match self {
            CallError::Refused { status, .. } => Some(status.code()),
            CallError::TimedOut { .. } | CallError::Incomplete { .. } => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    pub fn is_already_there(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }

    /// Of a commit: the bytes written are not those that were to come.
    fn is_refused_content(&self) -> bool {
        self.code() == Some(Code::FailedPrecondition)
    }

    /// The call may or may not have happened.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            CallError::TimedOut { .. } | CallError::Incomplete { .. } => true,
            CallError::Refused { status, .. } => matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
            ),
        }
    }
}

/// Treats "there is no such thing" as done.
pub fn unless_gone(result: Result<(), CallError>) -> Result<(), CallError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

impl Containerd {
    /// Connects once; later the connection comes back by itself.
    pub async fn connect(
        socket: &Path,
        namespace: &str,
        snapshotter: &str,
    ) -> Result<Self, ConnectError> {
        let channel = containerd_client::connect(socket)
            .await
            .map_err(|source| ConnectError {
                socket: socket.to_owned(),
                source,
            })?;
        Ok(Self {
            channel,
            namespace: namespace
                .parse()
                .expect("the configuration allows letters, digits, - and _ only"),
            namespace_text: namespace.to_owned(),
            snapshotter: snapshotter.to_owned(),
            imports: Turns::default(),
        })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace_text
    }

    /// containerd's version, for logs.
    pub async fn version(&self) -> Result<String, CallError> {
        let mut client = VersionClient::new(self.channel.clone());
        let answer = call("version", QUICK, client.version(Request::new(()))).await?;
        Ok(answer.version)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn diff(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel.clone())
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }
}

/// Waits for an answer, but not for ever.
async fn call<T>(
    call: &'static str,
    after: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(after, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CallError::Refused {
            call,
            status: Box::new(status),
        }),
        Err(_) => Err(CallError::TimedOut { call, after }),
    }
}
