//! Blobs from registries, each fetched by a process of its own that has no rights.
//!
//! The agent is root, and what a registry sends is bytes from outside. So it starts its own program again
//! (`fetch-blob`, see [`child`]), which reads the operator's files, gives up every right, and only then
//! opens a socket. Of what that process writes, the agent looks at nothing: the bytes go on to
//! containerd, which verifies their digest, and its last words are shown to people as they are.

pub mod child;
mod rights;

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use shared::ids::ImageRef;
use shared::plan::OciBlob;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

/// The process gives a connection up that brings nothing for a minute; one that does not even do that
/// is ended.
const SILENCE: Duration = Duration::from_secs(150);
/// To end, once all has been said.
const END_WAIT: Duration = Duration::from_secs(10);
const MAX_WORDS_BYTES: u64 = 4 << 10;
const MAX_WORDS_CHARS: usize = 700;
/// What the process may see of this one's environment: where a proxy and certificates are.
const PASSED_ON: [&str; 10] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// How to start such processes.
#[derive(Clone, Debug)]
pub struct Puller {
    /// This program.
    pub program: PathBuf,
    pub hosts_dir: PathBuf,
    pub auth_file: PathBuf,
    pub uid: Uid,
    pub gid: Gid,
}

/// Which bytes.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub image: &'a ImageRef,
    pub blob: &'a OciBlob,
    pub is_manifest: bool,
    pub offset: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("start {} for a blob", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read what a registry sends")]
    Read(#[source] io::Error),
    #[error("no byte came from the registry within {SILENCE:?}")]
    Silent,
    #[error("the registry sent more bytes than the image says")]
    TooMuch,
    /// In the process' own words. `later`: trying again may help.
    #[error("{words}")]
    Failed { words: String, later: bool },
}

impl FetchError {
    pub fn worth_retrying(&self) -> bool {
        match self {
            FetchError::Failed { later, .. } => *later,
            FetchError::Read(_) | FetchError::Silent | FetchError::TooMuch => true,
            FetchError::Start { .. } => false,
        }
    }
}

/// A process at work. Dropping it ends it.
pub struct Fetching {
    child: Child,
    stdout: ChildStdout,
    stderr: Option<ChildStderr>,
    left: u64,
}

impl Puller {
    pub fn fetch(&self, wanted: Wanted<'_>) -> Result<Fetching, FetchError> {
        let failed = |source| FetchError::Start {
            program: self.program.clone(),
            source,
        };
        let mut command = Command::new(&self.program);
        command
            .arg("fetch-blob")
            .args(["--image", wanted.image.as_str()])
            .args(["--digest", wanted.blob.digest.as_str()])
            .args(["--size", &wanted.blob.size_bytes.to_string()])
            .args(["--offset", &wanted.offset.to_string()])
            .args(["--uid", &self.uid.to_string()])
            .args(["--gid", &self.gid.to_string()])
            .arg("--hosts-dir")
            .arg(&self.hosts_dir)
            .arg("--auth-file")
            .arg(&self.auth_file)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if wanted.is_manifest {
            command.arg("--manifest");
        }
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let mut child = command.spawn().map_err(failed)?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Fetching {
            stderr: child.stderr.take(),
            stdout,
            left: wanted.blob.size_bytes.saturating_sub(wanted.offset),
            child,
        })
    }
}

impl Fetching {
    /// Adds the next bytes; none are added at the end. After an error the bytes added before are good.
    pub async fn read(&mut self, into: &mut Vec<u8>, most: usize) -> Result<(), FetchError> {
        while into.len() < most {
            let room = (most - into.len()) as u64;
            let mut limited = (&mut self.stdout).take(room);
            let read = tokio::time::timeout(SILENCE, limited.read_buf(into));
            match read.await {
                Err(_) => return Err(FetchError::Silent),
                Ok(Err(error)) => return Err(FetchError::Read(error)),
                Ok(Ok(0)) => return self.end().await,
                Ok(Ok(read)) => {
                    let left = self.left.checked_sub(read as u64);
                    self.left = left.ok_or(FetchError::TooMuch)?;
                }
            }
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), FetchError> {
        let words = self.words().await;
        let ended = tokio::time::timeout(END_WAIT, self.child.wait()).await;
        let status = match ended {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Err(FetchError::Read(error)),
            Err(_) => return Err(FetchError::Silent),
        };
        if status.success() && self.left == 0 {
            return Ok(());
        }
        Err(FetchError::Failed {
            later: status.code() != Some(i32::from(child::NOT_LATER)),
            words: if words.is_empty() {
                format!("the process that fetches it ended early ({status})")
            } else {
                words
            },
        })
    }

    /// The last words, as one line of plain characters.
    async fn words(&mut self) -> String {
        let mut bytes = Vec::new();
        if let Some(stderr) = self.stderr.take() {
            let mut limited = stderr.take(MAX_WORDS_BYTES);
            let read = limited.read_to_end(&mut bytes);
            // What came until then is better than nothing.
            let _ = tokio::time::timeout(END_WAIT, read).await;
        }
        let text = String::from_utf8_lossy(&bytes);
        let plain = text
            .trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c });
        plain.take(MAX_WORDS_CHARS).collect()
    }
}
