//! Opens a replica's socket.
//!
//! The folder belongs to the replica, so what is called `http.sock` in it may be anything, also a link
//! to another replica's socket or to some daemon's. Hence: the folder is opened first, the name is
//! opened within it with `O_PATH|O_NOFOLLOW`, what was opened must be a socket owned by the replica's
//! user, and the connection goes to exactly that, through `/proc/self/fd`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use shared::ids::ReplicaId;
use shared::runtime::REPLICA_SOCKET;
use tokio::net::UnixStream;

/// A listener whose backlog is full refuses at once; it mostly has room a moment later.
const BACKLOG_TRIES: u32 = 4;
const BACKLOG_WAIT: Duration = Duration::from_millis(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("open the folder of replica {replica}")]
    Folder {
        replica: ReplicaId,
        #[source]
        source: Errno,
    },
    /// As every replica is before its server listens.
    #[error("replica {replica} does not listen yet")]
    NotYet { replica: ReplicaId },
    #[error("open {REPLICA_SOCKET} of replica {replica}")]
    Open {
        replica: ReplicaId,
        #[source]
        source: Errno,
    },
    #[error("{REPLICA_SOCKET} of replica {replica} is {found}, not a socket")]
    NotASocket {
        replica: ReplicaId,
        found: &'static str,
    },
    #[error(
        "{REPLICA_SOCKET} of replica {replica} belongs to user {found}, not to its user {expected}"
    )]
    WrongOwner {
        replica: ReplicaId,
        expected: u32,
        found: u32,
    },
    #[error("connect to replica {replica}")]
    Connect {
        replica: ReplicaId,
        #[source]
        source: io::Error,
    },
}

/// Connects to the replica whose folder is `RUN_DIR/REPLICA`.
pub(crate) async fn connect(
    run_dir: &Path,
    replica: &ReplicaId,
    uid: u32,
) -> Result<UnixStream, SocketError> {
    let socket = open_socket(run_dir, replica, uid)?;
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let mut tries = 1;
    loop {
        match UnixStream::connect(&path).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && tries < BACKLOG_TRIES => {
                tries += 1;
                tokio::time::sleep(BACKLOG_WAIT).await;
            }
            connected => {
                return connected.map_err(|source| SocketError::Connect {
                    replica: replica.clone(),
                    source,
                });
            }
        }
    }
}

fn open_socket(run_dir: &Path, replica: &ReplicaId, uid: u32) -> Result<OwnedFd, SocketError> {
    let folder = open(
        &run_dir.join(replica.as_str()),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|source| SocketError::Folder {
        replica: replica.clone(),
        source,
    })?;
    let opened = |source| match source {
        Errno::ENOENT => SocketError::NotYet {
            replica: replica.clone(),
        },
        source => SocketError::Open {
            replica: replica.clone(),
            source,
        },
    };
    let socket = openat(
        folder.as_fd(),
        REPLICA_SOCKET,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(opened)?;
    let stat = fstat(socket.as_fd()).map_err(opened)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFSOCK {
        return Err(SocketError::NotASocket {
            replica: replica.clone(),
            found: name_of(kind),
        });
    }
    if stat.st_uid != uid {
        return Err(SocketError::WrongOwner {
            replica: replica.clone(),
            expected: uid,
            found: stat.st_uid,
        });
    }
    Ok(socket)
}

fn name_of(kind: SFlag) -> &'static str {
    if kind == SFlag::S_IFLNK {
        "a symbolic link"
    } else if kind == SFlag::S_IFDIR {
        "a folder"
    } else if kind == SFlag::S_IFREG {
        "a file"
    } else {
        "something else"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    struct Fixture {
        run_dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let run_dir = tempfile::tempdir().expect("folder");
            Self { run_dir }
        }

        fn folder(&self, n: u64) -> std::path::PathBuf {
            let folder = self.run_dir.path().join(ReplicaId::from_bits(n).as_str());
            std::fs::create_dir_all(&folder).expect("folder");
            folder
        }

        fn listen(&self, n: u64) -> UnixListener {
            UnixListener::bind(self.folder(n).join(REPLICA_SOCKET)).expect("listen")
        }

        async fn connect(&self, n: u64) -> Result<UnixStream, SocketError> {
            let uid = nix::unistd::geteuid().as_raw();
            connect(self.run_dir.path(), &ReplicaId::from_bits(n), uid).await
        }
    }

    #[tokio::test]
    async fn a_replicas_own_socket_is_connected() {
        let fixture = Fixture::new();
        let _listener = fixture.listen(1);
        fixture.connect(1).await.expect("connected");
    }

    #[tokio::test]
    async fn a_socket_swapped_for_a_link_to_anothers_is_refused_by_name() {
        let fixture = Fixture::new();
        let _other = fixture.listen(2);
        let own = fixture.folder(1).join(REPLICA_SOCKET);
        std::os::unix::fs::symlink(fixture.folder(2).join(REPLICA_SOCKET), own).expect("link");
        let error = fixture.connect(1).await.expect_err("refused");
        assert!(
            matches!(
                error,
                SocketError::NotASocket {
                    found: "a symbolic link",
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("0000000000000001"), "{error}");
    }

    #[tokio::test]
    async fn a_folder_swapped_for_a_link_is_refused() {
        let fixture = Fixture::new();
        let _other = fixture.listen(2);
        let link = fixture
            .run_dir
            .path()
            .join(ReplicaId::from_bits(1).as_str());
        std::os::unix::fs::symlink(fixture.folder(2), link).expect("link");
        assert!(matches!(
            fixture.connect(1).await,
            Err(SocketError::Folder { .. })
        ));
    }

    #[tokio::test]
    async fn a_file_in_the_sockets_place_and_another_users_socket_are_refused() {
        let fixture = Fixture::new();
        std::fs::write(fixture.folder(1).join(REPLICA_SOCKET), b"").expect("write");
        assert!(matches!(
            fixture.connect(1).await,
            Err(SocketError::NotASocket { .. })
        ));
        let _listener = fixture.listen(2);
        let stranger = nix::unistd::geteuid().as_raw() + 1;
        let id = ReplicaId::from_bits(2);
        let refused = connect(fixture.run_dir.path(), &id, stranger).await;
        assert!(matches!(refused, Err(SocketError::WrongOwner { .. })));
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_an_error_of_connecting() {
        let fixture = Fixture::new();
        drop(fixture.listen(1));
        assert!(matches!(
            fixture.connect(1).await,
            Err(SocketError::Connect { .. })
        ));
    }
}
