//! The routes on disk, from which a gateway serves when it starts without a scheduler.

use std::io;
use std::path::{Path, PathBuf};

use daemon::telemetry::Chain;
use prost::Message as _;
use shared::routes::Routes;
use shared::wire::{MAX_FRAME_BYTES, RoutesMessage, WireError};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

const FILE: &str = "routes.pb";

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
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
    let message = RoutesMessage::decode(bytes.as_slice()).map_err(|source| LoadError::Decode {
        path: path.clone(),
        source,
    })?;
    Routes::try_from(message)
        .map(Some)
        .map_err(|source| LoadError::Invalid { path, source })
}

fn save(state_dir: &Path, routes: &Routes) -> io::Result<()> {
    let bytes = RoutesMessage::from(routes).encode_to_vec();
    // It holds hashes of tokens.
    daemon::files::write_atomic(&state_dir.join(FILE), &bytes, 0o600)
}

/// Writes the routes whenever they change, the newest only, until cancelled. A failure is said and the
/// gateway goes on: it would start with older routes, which the scheduler's next ones replace.
pub(crate) async fn run(
    state_dir: PathBuf,
    mut current: watch::Receiver<Option<Arc<Routes>>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = current.changed() => if changed.is_err() { return Ok(()) },
        }
        let Some(routes) = current.borrow_and_update().clone() else {
            continue;
        };
        let folder = state_dir.clone();
        let saved = tokio::task::spawn_blocking(move || save(&folder, &routes)).await?;
        if let Err(e) = saved {
            let path = state_dir.join(FILE);
            error!(path = %path.display(), error = %Chain(&e), "routes were not written to disk");
        }
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

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(FILE), [0xff; 9]).expect("write");
        let error = load(folder.path()).expect_err("refused");
        assert!(error.to_string().contains("routes.pb"), "{error}");
    }
}
