//! Renews the scheduler's own certificate, and carries a rotation of the authority on as soon as the
//! nodes are ready for it.

use std::time::Duration;

use daemon::credentials::Credentials;
use daemon::identity::{moment, unix_now};
use daemon::renew::due;
use prometheus_client::metrics::gauge::Gauge;
use scheduler_core::Effects;
use scheduler_core::events::recorded as told;
use scheduler_core::registry::RotationStage;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::authorities::Authorities;
use crate::control::Handle;

/// A look costs a comparison, and while a rotation is under way a walk over the nodes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a failure: a full disk mostly.
const REST: Duration = Duration::from_secs(30);

pub(crate) struct Certificates {
    pub(crate) authorities: Authorities,
    pub(crate) credentials: Credentials,
    pub(crate) control: Handle,
    /// DNS names and addresses of the scheduler's certificate.
    pub(crate) names: Vec<String>,
    pub(crate) lifetime: Duration,
    pub(crate) expiry: Gauge,
}

impl Certificates {
    pub(crate) async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut trust = self.authorities.trust();
        let mut told = String::new();
        loop {
            let wait = match self.pass().await {
                Ok(()) => {
                    told.clear();
                    LOOK_EVERY
                }
                Err(failure) => {
                    let reason = format!("{failure:#}");
                    if reason != told {
                        error!(error = reason, "certificates are not kept up; trying on");
                        told = reason;
                    }
                    REST
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                Ok(()) = trust.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn pass(&self) -> anyhow::Result<()> {
        if let Some((RotationStage::Spreading, new)) = self.authorities.rotation() {
            let waiting = self
                .control
                .read(move |core| {
                    core.registry
                        .waiting_for(RotationStage::Spreading, &new)
                        .len()
                })
                .await;
            // A control task that has ended takes the process with it.
            if waiting == Ok(0) {
                self.authorities.replace()?;
                info!("every node trusts the new authority, which signs from now on");
                let tell = self.control.decide(|core, ctx| {
                    core.tell(told::authority_signs(), ctx.unix_ms);
                    ((), Effects::default())
                });
                // As above: an ended control task takes the process with it.
                let _ = tell.await;
            }
        }
        self.renew_own()?;
        self.expiry.set(self.credentials.validity().not_after);
        Ok(())
    }

    fn renew_own(&self) -> anyhow::Result<()> {
        let bundle = self.authorities.bundle_pem();
        let signer = self.authorities.signer_sha256();
        let held = self.credentials.identity();
        let is_due = unix_now() >= due(self.credentials.validity(), 0.0);
        if !is_due && self.credentials.issuer().as_ref() == Some(&signer) {
            // Of the trusted ones the set may have changed all the same.
            self.credentials.trust(&bundle, "")?;
            return Ok(());
        }
        let request = held.request_again().map_err(anyhow::Error::msg)?;
        let issued = self
            .authorities
            .sign(&request, &held.subject, &self.names, self.lifetime)?;
        self.credentials.renewed(&issued.certificate_pem, &bundle)?;
        let until = moment(issued.until_unix);
        info!(until, "the scheduler's certificate was renewed");
        Ok(())
    }
}
