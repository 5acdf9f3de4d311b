//! The routes on disk, from which a gateway serves when it starts without a scheduler.
//!
//! The file is the frame that they came in, with the version of the file's form as one more field: who
//! reads the frame passes over it.

use std::io;
use std::path::{Path, PathBuf};

use daemon::telemetry::Chain;
use prost::Message as _;
use shared::routes::Routes;
use shared::wire::{MAX_FRAME_BYTES, RoutesMessage, WireError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

const FILE: &str = "routes.pb";
const FORMAT: u32 = 1;
/// A disk that was full may have room again.
const AGAIN: Duration = Duration::from_secs(5);

/// What the file says beside the routes.
#[derive(Clone, PartialEq, prost::Message)]
struct Format {
    /// Absent in files of before there were versions.
    #[prost(uint32, tag = "50")]
    format: u32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} has format {found}, this stokehold-gateway ({}) knows {FORMAT}: install the version that \
         wrote it, or a later one. It is left as it is. To go on with this one, move that file away: \
         the scheduler sends the routes again",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{} is over the limit of {MAX_FRAME_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not readable", path.display())]
    Decode {
        path: PathBuf,
        #[source]
        source: prost::DecodeError,
    },
    #[error("{} is not valid", path.display())]
    Invalid {
        path: PathBuf,
        #[source]
        source: WireError,
    },
}

/// The routes that were last in use; `None` before any were.
pub(crate) fn load(state_dir: &Path) -> Result<Option<Routes>, LoadError> {
    let path = state_dir.join(FILE);
    let read = |source| LoadError::Read {
        path: path.clone(),
        source,
    };
    let bytes = match std::fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(read(e)),
        Ok(metadata) if metadata.len() > MAX_FRAME_BYTES as u64 => {
            return Err(LoadError::TooLarge { path });
        }
        Ok(_) => std::fs::read(&path).map_err(read)?,
    };
    let format = Format::decode(bytes.as_slice()).map_or(0, |format| format.format);
    if format > FORMAT {
        return Err(LoadError::Newer {
            path,
            found: format,
        });
    }
    let message = RoutesMessage::decode(bytes.as_slice()).map_err(|source| LoadError::Decode {
        path: path.clone(),
        source,
    })?;
    Routes::try_from(message)
        .map(Some)
        .map_err(|source| LoadError::Invalid { path, source })
}

#[derive(Debug, thiserror::Error)]
#[error("write the routes to {}, which takes {len} bytes", path.display())]
struct SaveError {
    path: PathBuf,
    len: usize,
    #[source]
    source: io::Error,
}

fn save(state_dir: &Path, routes: &Routes) -> Result<(), SaveError> {
    let mut bytes = RoutesMessage::from(routes).encode_to_vec();
    bytes.extend(Format { format: FORMAT }.encode_to_vec());
    let path = state_dir.join(FILE);
    // It holds hashes of tokens.
    daemon::files::write_atomic(&path, &bytes, 0o600).map_err(|source| SaveError {
        path,
        len: bytes.len(),
        source,
    })
}

/// Writes the routes whenever they change, the newest only, until cancelled. A failure is said once, in
/// `trouble` as long as it lasts, and the write is tried again; the gateway goes on meanwhile, and would
/// start with older routes, which the scheduler's next ones replace.
pub(crate) async fn run(
    state_dir: PathBuf,
    mut current: watch::Receiver<Option<Arc<Routes>>>,
    trouble: watch::Sender<Option<String>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let failing = trouble.borrow().is_some();
        let again = async {
            match failing {
                true => tokio::time::sleep(AGAIN).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = current.changed() => if changed.is_err() { return Ok(()) },
            () = again => {}
        }
        let Some(routes) = current.borrow_and_update().clone() else {
            continue;
        };
        let folder = state_dir.clone();
        let saved = tokio::task::spawn_blocking(move || save(&folder, &routes)).await?;
        let problem = saved.err().map(|error| Chain(&error).to_string());
        match &problem {
            Some(problem) if !failing => {
                error!(
                    error = problem,
                    "routes were not written to disk, trying on"
                );
            }
            Some(_) => {}
            None if failing => info!("routes are written to disk again"),
            None => {}
        }
        trouble.send_replace(problem.map(|problem| {
            format!("a restart without a scheduler would serve older routes: {problem}")
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::{ClusterId, Epoch, Revision};

    #[test]
    fn what_was_saved_is_loaded_and_nothing_is_there_before() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(load(folder.path()).expect("readable"), None);
        let routes = Routes {
            cluster: ClusterId::from_bits(1),
            epoch: Epoch(2),
            revision: Revision(3),
            endpoints: Vec::new(),
            tokens: Vec::new(),
            gateways: Vec::new(),
            revoked_nodes: Vec::new(),
        };
        save(folder.path(), &routes).expect("saved");
        assert_eq!(load(folder.path()).expect("readable"), Some(routes));
    }

    fn routes(revision: u64) -> Routes {
        Routes {
            cluster: ClusterId::from_bits(1),
            epoch: Epoch(2),
            revision: Revision(revision),
            endpoints: Vec::new(),
            tokens: Vec::new(),
            gateways: Vec::new(),
            revoked_nodes: Vec::new(),
        }
    }

    #[test]
    fn a_file_of_a_later_format_is_refused_and_one_without_is_read() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(FILE);
        let mut bytes = RoutesMessage::from(&routes(3)).encode_to_vec();
        std::fs::write(&path, &bytes).expect("write");
        assert_eq!(load(folder.path()).expect("readable"), Some(routes(3)));
        bytes.extend(Format { format: 9 }.encode_to_vec());
        std::fs::write(&path, &bytes).expect("write");
        let error = load(folder.path()).expect_err("refused").to_string();
        assert!(
            error.contains("format 9") && error.contains("knows 1"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).expect("kept"), bytes);
    }

    #[tokio::test(start_paused = true)]
    async fn routes_that_were_not_written_are_tried_again_and_said_meanwhile() {
        let folder = tempfile::tempdir().expect("folder");
        let inside = folder.path().join("gone");
        let (send, current) = watch::channel(None);
        let (trouble, mut said) = watch::channel(None);
        let cancel = CancellationToken::new();
        let writing = tokio::spawn(run(inside.clone(), current, trouble, cancel.clone()));
        send.send_replace(Some(Arc::new(routes(3))));
        said.changed().await.expect("said");
        let text = said.borrow_and_update().clone().expect("trouble");
        assert!(
            text.contains("gone/routes.pb") && text.contains("bytes"),
            "{text}"
        );
        std::fs::create_dir(&inside).expect("made");
        said.wait_for(Option::is_none).await.expect("written");
        assert_eq!(load(&inside).expect("readable"), Some(routes(3)));
        cancel.cancel();
        writing.await.expect("ran").expect("ended well");
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(FILE), [0xff; 9]).expect("write");
        let error = load(folder.path()).expect_err("refused");
        assert!(error.to_string().contains("routes.pb"), "{error}");
    }
}
