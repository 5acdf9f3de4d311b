//! The cluster's certificate authority, and the one that takes its place while it is rotated.
//!
//! ```text
//!           rotate                    every node trusts the new one
//! steady ------------> spreading ---------------------------------> replacing ---finish---> steady
//!              both are trusted,                        both are trusted,      the new one alone
//!              the old one signs                        the new one signs
//! ```
//! What always holds: whatever this process dies at, the next one goes on there. While a rotation is
//! under way `rotation.json` is the truth, and `ca.pem` and `ca-key.pem` are made from it again at
//! each start. `ca.pem` holds every trusted authority, the one that signs first.
//!
//! During the rotation certificates carry the new authority's certificate as the old one signs it, so
//! that whoever trusts only the old one (a join token, a copy of `ca.pem`) accepts them until the end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use daemon::ca::{CaError, CertificateAuthority, hex_of};
use daemon::files;
use daemon::identity::{Subject, server_name, unix_now, validity_of};
use daemon::tls;
use rustls::pki_types::CertificateDer;
use scheduler_core::registry::RotationStage;
use serde::{Deserialize, Serialize};
use shared::api::certificates::CaAuthority;
use shared::ids::ClusterId;
use shared::wire::Trust;
use tokio::sync::watch;

const ROTATION: &str = "rotation.json";
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("a rotation is under way already: see `stokehold ca status`")]
    UnderWay,
    #[error("no rotation is under way: `stokehold ca rotate` begins one")]
    None,
    #[error(
        "nodes do not know the new authority yet, and the old one still signs: see `stokehold ca \
         status` for what it waits for"
    )]
    TooEarly,
    #[error("keep the certificate authority")]
    Authority(#[from] CaError),
    #[error("keep {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Shared by everything that signs or checks.
#[derive(Clone)]
pub struct Authorities(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    cluster: ClusterId,
    /// The lock is held for a signature, or while a file is written.
    state: Mutex<State>,
    trust: watch::Sender<Trust>,
}

// One exists, and it changes twice in a rotation: a box would only be in the way.
#[allow(clippy::large_enum_variant)]
enum State {
    Steady(CertificateAuthority),
    Rotating {
        stage: RotationStage,
        old: CertificateAuthority,
        new: CertificateAuthority,
        /// The new one as the old one signs it, PEM.
        cross: String,
    },
}

/// `rotation.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    v: u32,
    step: Step,
    old: Pair,
    new: Pair,
    cross_pem: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Spreading,
    Replacing,
    /// The new one alone is left; what the file says is to be brought into the others.
    Finishing,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    certificate_pem: String,
    key_pem: String,
}

/// A signed certificate.
pub struct Issued {
    /// Leaf first.
    pub certificate_pem: String,
    pub until_unix: i64,
}

impl Authorities {
    /// The authority in a folder; a rotation goes on where it was.
    pub fn load(folder: &Path, cluster: &ClusterId) -> Result<Self, CaError> {
        let path = folder.join(ROTATION);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let authority = CertificateAuthority::load(folder, cluster)?;
                return Ok(Self::new(folder, State::Steady(authority)));
            }
            Err(source) => {
                let folder = folder.display().to_string();
                return Err(CaError::Io { folder, source });
            }
        };
        let invalid = |problem: String| CaError::Invalid {
            folder: path.display().to_string(),
            problem,
        };
        let stored: Stored = serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        if stored.v != VERSION {
            return Err(invalid(format!(
                "it has version {}, this program knows {VERSION}",
                stored.v
            )));
        }
        let pair = |pair: &Pair| {
            CertificateAuthority::from_pem(&pair.certificate_pem, &pair.key_pem, cluster)
                .map_err(invalid)
        };
        let (old, new) = (pair(&stored.old)?, pair(&stored.new)?);
        let stage = match stored.step {
            Step::Spreading => RotationStage::Spreading,
            Step::Replacing => RotationStage::Replacing,
            Step::Finishing => {
                new.save(folder)?;
                remove(&path)?;
                return Ok(Self::new(folder, State::Steady(new)));
            }
        };
        let state = State::Rotating {
            stage,
            old,
            new,
            cross: stored.cross_pem,
        };
        state.save_signer(folder)?;
        Ok(Self::new(folder, state))
    }

    /// A new cluster's.
    pub fn create(folder: &Path, cluster: &ClusterId) -> Result<Self, CaError> {
        let authority = CertificateAuthority::create(cluster);
        authority.save(folder)?;
        Ok(Self::new(folder, State::Steady(authority)))
    }

    fn new(folder: &Path, state: State) -> Self {
        let trust = watch::channel(state.trust()).0;
        Self(Arc::new(Inner {
            folder: folder.to_owned(),
            cluster: state.signer().cluster().clone(),
            state: Mutex::new(state),
            trust,
        }))
    }

    pub fn cluster(&self) -> &ClusterId {
        &self.0.cluster
    }

    /// What nodes are to trust, and who signs; it changes with the rotation.
    pub fn trust(&self) -> watch::Receiver<Trust> {
        self.0.trust.subscribe()
    }

    /// Every trusted authority, PEM, the one that signs first.
    pub fn bundle_pem(&self) -> String {
        self.0.trust.borrow().authorities_pem.clone()
    }

    /// SHA-256 of the authority that signs: what join tokens pin.
    pub fn signer_sha256(&self) -> String {
        self.0.trust.borrow().signer.clone()
    }

    pub fn list(&self) -> Vec<CaAuthority> {
        let state = self.state();
        let all = state.trusted().into_iter().enumerate();
        all.map(|(i, authority)| CaAuthority {
            sha256: authority.sha256_hex(),
            signs: i == 0,
            expires_unix: validity_of(authority.certificate()).map_or(0, |it| it.not_after),
        })
        .collect()
    }

    /// How far a rotation is, and the SHA-256 of the authority that it leads to.
    pub fn rotation(&self) -> Option<(RotationStage, String)> {
        match &*self.state() {
            State::Steady(_) => None,
            State::Rotating { stage, new, .. } => Some((*stage, new.sha256_hex())),
        }
    }

    /// The authority of this cluster, trusted now, that signed a certificate for `subject`, also one
    /// that has expired.
    pub fn issuer_of(
        &self,
        certificate: &CertificateDer<'static>,
        subject: &Subject,
    ) -> Option<String> {
        let state = self.state();
        let trusted = state.trusted().into_iter();
        let trusted: Vec<_> = trusted.map(|it| it.certificate().clone()).collect();
        let name = server_name(subject.role, &subject.node);
        tls::issuer_of(certificate, &name, &trusted).map(hex_of)
    }

    /// See [`CertificateAuthority::sign`].
    pub fn sign(
        &self,
        csr_pem: &str,
        subject: &Subject,
        names: &[String],
        lifetime: Duration,
    ) -> Result<Issued, CaError> {
        let state = self.state();
        let mut certificate_pem = state.signer().sign(csr_pem, subject, names, lifetime)?;
        if let State::Rotating {
            stage: RotationStage::Replacing,
            cross,
            ..
        } = &*state
        {
            certificate_pem.push_str(cross);
        }
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        Ok(Issued {
            certificate_pem,
            until_unix: unix_now().saturating_add(lifetime),
        })
    }

    /// Makes a new authority beside the old one.
    pub fn rotate(&self) -> Result<(), RotationError> {
        let mut state = self.state();
        let State::Steady(old) = &*state else {
            return Err(RotationError::UnderWay);
        };
        let new = CertificateAuthority::create(&self.0.cluster);
        let rotating = State::Rotating {
            stage: RotationStage::Spreading,
            old: again(old)?,
            cross: new.cross_signed_by(old)?,
            new,
        };
        self.enter(&mut state, rotating, Step::Spreading)
    }

    /// The new authority signs from now on: every node trusts it.
    pub fn replace(&self) -> Result<(), RotationError> {
        self.step(RotationStage::Spreading, |old, new, cross| {
            let rotating = State::Rotating {
                stage: RotationStage::Replacing,
                old,
                new,
                cross,
            };
            (rotating, Step::Replacing)
        })
    }

    /// The old authority is trusted no longer.
    pub fn finish(&self) -> Result<(), RotationError> {
        let path = self.0.folder.join(ROTATION);
        self.step(RotationStage::Replacing, |old, new, cross| {
            let rotating = State::Rotating {
                stage: RotationStage::Replacing,
                old,
                new,
                cross,
            };
            (rotating, Step::Finishing)
        })?;
        let mut state = self.state();
        let State::Rotating { new, .. } = &*state else {
            return Ok(());
        };
        new.save(&self.0.folder)?;
        remove(&path)?;
        let steady = CertificateAuthority::load(&self.0.folder, &self.0.cluster)?;
        *state = State::Steady(steady);
        self.0.trust.send_replace(state.trust());
        Ok(())
    }

    fn step(
        &self,
        from: RotationStage,
        next: impl FnOnce(CertificateAuthority, CertificateAuthority, String) -> (State, Step),
    ) -> Result<(), RotationError> {
        let mut state = self.state();
        let (old, new, cross) = match &*state {
            State::Steady(_) => return Err(RotationError::None),
            State::Rotating {
                stage,
                old,
                new,
                cross,
            } if *stage == from => (again(old)?, again(new)?, cross.clone()),
            State::Rotating {
                stage: RotationStage::Spreading,
                ..
            } => return Err(RotationError::TooEarly),
            State::Rotating { .. } => return Ok(()),
        };
        let (next, step) = next(old, new, cross);
        self.enter(&mut state, next, step)
    }

    /// First on disk, then here, then to the nodes.
    fn enter(
        &self,
        state: &mut MutexGuard<'_, State>,
        next: State,
        step: Step,
    ) -> Result<(), RotationError> {
        let State::Rotating {
            old, new, cross, ..
        } = &next
        else {
            return Ok(());
        };
        let pair = |authority: &CertificateAuthority| Pair {
            certificate_pem: authority.certificate_pem().to_owned(),
            key_pem: authority.key_pem().to_owned(),
        };
        let stored = Stored {
            v: VERSION,
            step,
            old: pair(old),
            new: pair(new),
            cross_pem: cross.clone(),
        };
        let path = self.0.folder.join(ROTATION);
        let json = serde_json::to_vec_pretty(&stored).expect("texts serialise");
        files::write_atomic(&path, &json, 0o600)
            .map_err(|source| RotationError::Write { path, source })?;
        next.save_signer(&self.0.folder)?;
        self.0.trust.send_replace(next.trust());
        **state = next;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no code panics under this lock")
    }
}

impl State {
    fn signer(&self) -> &CertificateAuthority {
        self.trusted()[0]
    }

    /// The one that signs first.
    fn trusted(&self) -> Vec<&CertificateAuthority> {
        match self {
            State::Steady(one) => vec![one],
            State::Rotating {
                stage, old, new, ..
            } => match stage {
                RotationStage::Spreading => vec![old, new],
                RotationStage::Replacing => vec![new, old],
            },
        }
    }

    fn trust(&self) -> Trust {
        let trusted = self.trusted();
        Trust {
            authorities_pem: trusted.iter().map(|it| it.certificate_pem()).collect(),
            signer: trusted[0].sha256_hex(),
        }
    }

    fn save_signer(&self, folder: &Path) -> Result<(), CaError> {
        let trusted = self.trusted();
        let others: String = trusted[1..].iter().map(|it| it.certificate_pem()).collect();
        trusted[0].save_with(folder, &others)
    }
}

/// Another value of the same authority.
fn again(it: &CertificateAuthority) -> Result<CertificateAuthority, CaError> {
    CertificateAuthority::from_pem(it.certificate_pem(), it.key_pem(), it.cluster()).map_err(
        |problem| CaError::Invalid {
            folder: "memory".to_owned(),
            problem,
        },
    )
}

fn remove(path: &Path) -> Result<(), CaError> {
    let removed = std::fs::remove_file(path).and_then(|()| {
        let folder = path.parent().unwrap_or(Path::new("/"));
        std::fs::File::open(folder)?.sync_all()
    });
    removed.map_err(|source| CaError::Io {
        folder: path.display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(ca: &Authorities) -> Option<RotationStage> {
        ca.rotation().map(|(stage, _)| stage)
    }

    #[test]
    fn a_rotation_goes_on_after_a_restart_at_every_step_and_nobodys_key_is_lost() {
        let folder = tempfile::tempdir().expect("folder");
        let cluster = ClusterId::from_bits(7);
        let load = || Authorities::load(folder.path(), &cluster).expect("loads");
        let ca = Authorities::create(folder.path(), &cluster).expect("made");
        let old = ca.signer_sha256();
        assert!(matches!(ca.finish(), Err(RotationError::None)));
        ca.rotate().expect("begins");
        assert!(matches!(ca.rotate(), Err(RotationError::UnderWay)));
        assert!(matches!(ca.finish(), Err(RotationError::TooEarly)));

        let ca = load();
        assert_eq!(phase(&ca), Some(RotationStage::Spreading));
        assert_eq!(ca.signer_sha256(), old);
        let new = ca.rotation().expect("rotates").1;
        ca.replace().expect("goes on");

        let ca = load();
        assert_eq!(phase(&ca), Some(RotationStage::Replacing));
        assert_eq!(ca.signer_sha256(), new);
        assert_eq!(ca.list().len(), 2);
        let path = folder.path().join(ROTATION);
        let replacing = std::fs::read_to_string(&path).expect("kept");
        ca.finish().expect("ends");
        assert!(!path.exists());
        assert_eq!(load().list().len(), 1);

        // Killed after it was decided, before the other files were written.
        let finishing = replacing.replace("\"replacing\"", "\"finishing\"");
        std::fs::write(&path, finishing).expect("written");
        std::fs::write(folder.path().join("ca-key.pem"), "torn").expect("written");
        let ca = load();
        assert_eq!((phase(&ca), ca.signer_sha256()), (None, new));
        assert!(!path.exists());
    }

    #[test]
    fn whoever_trusts_only_the_old_authority_accepts_the_new_ones_certificates_until_the_end() {
        let folder = tempfile::tempdir().expect("folder");
        let cluster = ClusterId::from_bits(7);
        let ca = Authorities::create(folder.path(), &cluster).expect("made");
        let old = daemon::identity::certificates_in(ca.bundle_pem().as_bytes()).expect("PEM");
        ca.rotate().expect("begins");
        ca.replace().expect("goes on");
        let subject = Subject {
            cluster,
            role: shared::ids::Role::Gateway,
            node: "n1".parse().expect("valid"),
        };
        let request = daemon::identity::new_request();
        let day = Duration::from_secs(86_400);
        let issued = ca.sign(&request.csr_pem, &subject, &[], day);
        let pem = issued.expect("signs").certificate_pem;
        let chain = daemon::identity::certificates_in(pem.as_bytes()).expect("PEM");
        assert_eq!(chain.len(), 2, "the link to the old one goes with it");
        assert!(tls::is_accepted(
            &chain,
            "n1.gateway.stokehold.internal",
            &old
        ));
        assert!(!tls::is_accepted(
            &chain[..1],
            "n1.gateway.stokehold.internal",
            &old
        ));
    }
}
