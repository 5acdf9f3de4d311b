//! `stokehold-agent fetch-blob`: one blob of a registry to standard output, by a process without rights.
//!
//! Nobody types this: the agent starts it. In this order: closes what it inherited, reads `hosts.toml`,
//! certificates and credentials as root, gives up every right, and opens its first socket. The bytes
//! are not verified here, since nobody would have reason to believe it; containerd does that.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use daemon::telemetry::Chain;
use nix::unistd::{Gid, Uid};
use registry::{Access, Client, Kind, PullError};
use shared::digest::OciDigest;
use shared::ids::ImageRef;

use super::rights::{self, RightsError};

/// Trying again changes nothing.
pub(super) const NOT_LATER: u8 = 3;
const LATER: u8 = 4;

#[derive(Debug, Args)]
pub struct FetchBlob {
    #[arg(long)]
    image: ImageRef,
    #[arg(long, value_parser = OciDigest::parse)]
    digest: OciDigest,
    /// Of the whole blob, in bytes.
    #[arg(long)]
    size: u64,
    /// The first byte to write.
    #[arg(long, default_value_t = 0)]
    offset: u64,
    /// It is a manifest, which registries keep apart from other blobs.
    #[arg(long)]
    manifest: bool,
    #[arg(long)]
    hosts_dir: PathBuf,
    #[arg(long)]
    auth_file: PathBuf,
    #[arg(long)]
    uid: u32,
    #[arg(long)]
    gid: u32,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("give up rights")]
    Rights(#[from] RightsError),
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("start a runtime")]
    Runtime(#[source] std::io::Error),
    #[error("hand bytes on")]
    Write(#[source] std::io::Error),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Rights(_) | Failure::Runtime(_) => NOT_LATER,
            Failure::Pull(error) => match error.kind() {
                Kind::Refused | Kind::Setup => NOT_LATER,
                Kind::Down => LATER,
            },
            Failure::Write(_) => LATER,
        }
    }
}

pub fn run(arguments: &FetchBlob) -> ExitCode {
    match fetch(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = Chain(&failure).to_string().replace('\n', " ");
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::from(failure.code())
        }
    }
}

fn fetch(arguments: &FetchBlob) -> Result<(), Failure> {
    rights::close_inherited()?;
    let access = Access::load(&arguments.hosts_dir, &arguments.auth_file, &arguments.image)?;
    rights::give_up(Uid::from_raw(arguments.uid), Gid::from_raw(arguments.gid))?;
    let client = Client::new(access)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?;
    runtime.block_on(copy(&client, arguments))
}

/// Writing waits for whoever reads, and with it the registry: nothing piles up in between.
async fn copy(client: &Client, arguments: &FetchBlob) -> Result<(), Failure> {
    let FetchBlob {
        digest,
        size,
        offset,
        manifest,
        ..
    } = arguments;
    let mut blob = client.blob(digest, *size, *offset, *manifest).await?;
    let mut out = std::io::stdout().lock();
    while let Some(bytes) = blob.next().await? {
        out.write_all(&bytes).map_err(Failure::Write)?;
    }
    out.flush().map_err(Failure::Write)
}
