//! What is on disk before anything runs: cluster id, certificate authority, own certificate, store,
//! the first admin token.
//!
//! A first start makes all of it. It is the first as long as there is no store; what an interrupted
//! one left behind is used by the next. Afterwards a part that is missing is an error, never made
//! anew: a new certificate authority would lock every node out.

use std::io;
use std::path::{Path, PathBuf};

use daemon::ca::{CaError, CertificateAuthority};
use daemon::files;
use daemon::identity::{
    Identity, IdentityError, Subject, certificates_in, names_of, new_request, unix_now, validity_of,
};
use daemon::renew::due;
use scheduler_core::ApiError;
use scheduler_core::registry::Registry;
use scheduler_core::store_op::Op;
use shared::ids::{ClusterId, NodeName, Role};
use shared::spec::TokenRole;
use tracing::info;

use crate::authorities::Authorities;
use crate::config::{Config, split_host_port};
use crate::rest::fresh_secret;
use crate::store::{OpenError, SledStore};

const CLUSTER_FILE: &str = "cluster-id";
const ADMIN_TOKEN_FILE: &str = "admin.token";
const ADMIN_TOKEN: &str = "admin";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("read or write {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} holds no cluster id (32 hexadecimal digits)", path.display())]
    ClusterId { path: PathBuf },
    #[error(
        "{} belongs to a cluster, but its certificate authority is not in {}: restore that folder \
         from a backup. Without it every node must join again: then move both folders away",
        data.display(), pki.display()
    )]
    NoAuthority { data: PathBuf, pki: PathBuf },
    #[error(
        "{} holds a certificate authority, but {} holds no cluster: restore that folder from a \
         backup, or move the first one away to begin a new cluster",
        pki.display(), data.display()
    )]
    NoCluster { data: PathBuf, pki: PathBuf },
    #[error(transparent)]
    Authority(#[from] CaError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("make the admin token")]
    Token(#[source] ApiError),
}

/// Where things lie below `data_dir`.
pub(crate) struct Paths {
    pub(crate) store: PathBuf,
    pub(crate) exports: PathBuf,
    pub(crate) objects: PathBuf,
    pub(crate) admin_token: PathBuf,
    cluster: PathBuf,
}

impl Paths {
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self {
            store: data_dir.join("state"),
            exports: data_dir.join("exports"),
            objects: data_dir.join("store"),
            admin_token: data_dir.join(ADMIN_TOKEN_FILE),
            cluster: data_dir.join(CLUSTER_FILE),
        }
    }
}

/// The cluster's authority; made at a first start.
pub(crate) fn authority(config: &Config, paths: &Paths) -> Result<Authorities, StateError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| StateError::Io { path, source }
    };
    files::private_dir(&config.data_dir, 0o700).map_err(io(&config.data_dir))?;
    let (data, pki) = (config.data_dir.clone(), config.pki_dir.clone());
    let first_start = !paths.store.exists();
    let cluster = match std::fs::read_to_string(&paths.cluster) {
        Ok(text) => ClusterId::parse(text.trim()).map_err(|_| StateError::ClusterId {
            path: paths.cluster.clone(),
        })?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if CertificateAuthority::exists(&pki) {
                return Err(StateError::NoCluster { data, pki });
            }
            if !first_start {
                return Err(StateError::ClusterId {
                    path: paths.cluster.clone(),
                });
            }
            let cluster = ClusterId::from_bits(rand::random());
            let text = format!("{cluster}\n");
            files::write_atomic(&paths.cluster, text.as_bytes(), 0o600)
                .map_err(io(&paths.cluster))?;
            cluster
        }
        Err(e) => return Err(io(&paths.cluster)(e)),
    };
    if CertificateAuthority::exists(&pki) {
        return Ok(Authorities::load(&pki, &cluster)?);
    }
    if !first_start {
        return Err(StateError::NoAuthority { data, pki });
    }
    let authority = Authorities::create(&pki, &cluster)?;
    info!(%cluster, pki = %pki.display(), "new cluster");
    Ok(authority)
}

/// The scheduler's own certificate: the one on disk, or a new one when that is missing, old, of
/// another cluster or for other names. And the names that it is for.
pub(crate) fn identity(
    config: &Config,
    authority: &Authorities,
) -> Result<(Identity, Vec<String>), StateError> {
    let host = host_name();
    let subject = Subject {
        cluster: authority.cluster().clone(),
        role: Role::Scheduler,
        node: NodeName::parse(&host)
            .unwrap_or_else(|_| NodeName::parse("scheduler").expect("a fixed valid name")),
    };
    let names = certificate_names(config, &host);
    let bundle = authority.bundle_pem();
    let lifetime = config.certificate_lifetime();
    let held = Identity::load(&config.pki_dir).ok();
    if let Some(held) = &held {
        match outdated(held, &subject, &names, authority) {
            None => return Ok((held.clone(), names)),
            Some(reason) => info!(reason, "the scheduler's certificate is renewed"),
        }
    }
    // With the same key nodes notice at once that their sessions of before are gone.
    if let Some(request) = held.and_then(|held| held.request_again().ok()) {
        let issued = authority.sign(&request, &subject, &names, lifetime)?;
        Identity::save_renewed(&config.pki_dir, &issued.certificate_pem, &bundle)?;
    } else {
        let request = new_request();
        let issued = authority.sign(&request.csr_pem, &subject, &names, lifetime)?;
        let certificate = &issued.certificate_pem;
        Identity::save(&config.pki_dir, certificate, &request.key_pem, &bundle)?;
    }
    Ok((Identity::load(&config.pki_dir)?, names))
}

/// The operations that record a first admin token, once its text lies in `data_dir`. None where
/// there are tokens: a lost file is not silently replaced.
pub(crate) fn first_admin_token(
    registry: &mut Registry,
    paths: &Paths,
    now_unix_ms: u64,
) -> Result<Vec<Op>, StateError> {
    if registry.tokens().next().is_some() {
        if !paths.admin_token.exists() {
            info!(
                file = %paths.admin_token.display(),
                "the first admin token's file is gone; `stokehold-scheduler reset-admin-token` makes a new one"
            );
        }
        return Ok(Vec::new());
    }
    let (token, ops) = registry
        .create_token(ADMIN_TOKEN, TokenRole::Admin, &fresh_secret(), now_unix_ms)
        .map_err(StateError::Token)?;
    write_admin_token(paths, token.expose())?;
    info!(file = %paths.admin_token.display(), "admin token made");
    Ok(ops)
}

/// Replaces the token named `admin`. Its text is written before the store is told, so that a crash
/// in between leaves a file that a second attempt replaces.
pub(crate) fn new_admin_token(
    registry: &mut Registry,
    paths: &Paths,
    now_unix_ms: u64,
) -> Result<Vec<Op>, StateError> {
    let (token, ops) = registry
        .replace_token(ADMIN_TOKEN, TokenRole::Admin, &fresh_secret(), now_unix_ms)
        .map_err(StateError::Token)?;
    write_admin_token(paths, token.expose())?;
    Ok(ops)
}

pub(crate) fn open_store(paths: &Paths) -> Result<SledStore, StateError> {
    Ok(SledStore::open(&paths.store, &paths.exports)?)
}

/// This machine's name, lower-case; `localhost` where it has none.
pub(crate) fn host_name() -> String {
    let name = nix::unistd::gethostname().ok();
    let name = name.and_then(|name| name.into_string().ok());
    let name = name.map(|name| name.to_ascii_lowercase());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

fn write_admin_token(paths: &Paths, text: &str) -> Result<(), StateError> {
    files::write_atomic(&paths.admin_token, format!("{text}\n").as_bytes(), 0o600).map_err(
        |source| StateError::Io {
            path: paths.admin_token.clone(),
            source,
        },
    )
}

/// In the order of the configuration, each once.
fn certificate_names(config: &Config, host: &str) -> Vec<String> {
    let fixed = [host, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
    // The configuration was checked.
    let advertised = config
        .advertise
        .iter()
        .flat_map(|name| split_host_port(name));
    let advertised = advertised.map(|(host, _)| host.to_ascii_lowercase());
    let mut names = Vec::new();
    for name in fixed.into_iter().chain(advertised) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Why a certificate must be made anew, if it must.
fn outdated(
    held: &Identity,
    subject: &Subject,
    names: &[String],
    authority: &Authorities,
) -> Option<&'static str> {
    let certificate = held.certificate();
    let (Ok(validity), Ok(held_names)) = (validity_of(certificate), names_of(certificate)) else {
        return Some("it is not readable");
    };
    let trusted = certificates_in(authority.bundle_pem().as_bytes());
    if held.subject != *subject {
        Some("it is of another cluster or host")
    } else if authority.issuer_of(certificate, subject) != Some(authority.signer_sha256())
        || trusted.is_ok_and(|trusted| trusted != held.authorities)
    {
        Some("the authority was rotated")
    } else if unix_now() > due(validity, 0.0) {
        Some("it is old")
    } else if !names.iter().all(|name| held_names.contains(name)) {
        Some("its names have changed")
    } else {
        None
    }
}
