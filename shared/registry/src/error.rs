//! Why an image or a blob could not be had: what, where, how to mend it.

use std::path::PathBuf;

use crate::auth::AuthFileError;
use crate::hosts::HostsError;
use crate::reference::InvalidReference;

/// What can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It does not exist, or nobody may have it: trying again changes nothing.
    Refused,
    /// The registry does not answer, or not now.
    Down,
    /// A file of this machine is wrong.
    Setup,
}

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    #[error(transparent)]
    Hosts(#[from] HostsError),
    #[error(transparent)]
    AuthFile(#[from] AuthFileError),
    #[error("{file} gives {host} something that TLS or HTTP cannot work with: {problem}", file = file.display())]
    Unusable {
        file: PathBuf,
        host: String,
        problem: String,
    },
    #[error(
        "{what} does not exist at {host}: check its name and tag, or bring it in with `stokehold image import FILE`"
    )]
    NotFound { what: String, host: String },
    #[error("{host} wants a login for {what}: put its credentials into {} (auth_file, in the form of Docker's config.json){}; an image that does not exist is answered like this, too", auth_file.display(), not_run(*helpers))]
    LoginNeeded {
        what: String,
        host: String,
        auth_file: PathBuf,
        helpers: bool,
    },
    #[error("{host} does not let in the user of {} (auth_file) for {what}: renew the credentials, or have that user given access", auth_file.display())]
    LoginRefused {
        what: String,
        host: String,
        auth_file: PathBuf,
    },
    #[error("{host} cannot be reached for {what}: {problem}; start it, or name a mirror in {}", hosts_file.display())]
    Unreachable {
        what: String,
        host: String,
        problem: String,
        hosts_file: PathBuf,
    },
    #[error("{host} answered {status} for {what}{said}")]
    Status {
        what: String,
        host: String,
        status: u16,
        /// The registry's own words, or nothing.
        said: String,
    },
    #[error("{host} broke off in the middle of {what}: {problem}")]
    BrokenOff {
        what: String,
        host: String,
        problem: String,
    },
    #[error("{host} gave something else than {what}: {problem}")]
    Wrong {
        what: String,
        host: String,
        problem: String,
    },
    #[error("no host that may be asked for {what}: give one in {} the capabilities \"pull\" and \"resolve\"", hosts_file.display())]
    NoHost { what: String, hosts_file: PathBuf },
    /// Of several hosts; the one that was asked last tells what to do.
    #[error("{last} (before that, {earlier})")]
    Several {
        last: Box<PullError>,
        earlier: String,
    },
}

fn not_run(named: bool) -> &'static str {
    if named {
        "; the credential helpers that it names are not run"
    } else {
        ""
    }
}

impl PullError {
    pub fn kind(&self) -> Kind {
        match self {
            PullError::Reference(_)
            | PullError::NotFound { .. }
            | PullError::LoginNeeded { .. }
            | PullError::LoginRefused { .. } => Kind::Refused,
            PullError::Unreachable { .. }
            | PullError::BrokenOff { .. }
            | PullError::Wrong { .. } => Kind::Down,
            PullError::Status { status, .. } if *status == 429 || *status >= 500 => Kind::Down,
            PullError::Status { .. } => Kind::Refused,
            PullError::Hosts(_)
            | PullError::AuthFile(_)
            | PullError::Unusable { .. }
            | PullError::NoHost { .. } => Kind::Setup,
            PullError::Several { last, .. } => last.kind(),
        }
    }
}
