//! Keeps a node's certificate valid: renews it after two thirds of its life with the same key, over
//! HTTPS, without a restart and without a connection lost.
//!
//! ```text
//!             after 2/3 of its life (or at once: another authority signs now)
//! valid ------------------------------------------------> due --renewed--> valid
//!                                                     fails: waits, tries again, until 30 days
//!                                                     after the end the scheduler refuses
//! ```
//! When to do what is decided by [`due`] and [`Retry`], which read no clock.

use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rand::RngExt as _;
use shared::api::certificates::{RenewReply, RenewRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::ca::BACKDATE;
use crate::credentials::{Credentials, CredentialsError};
use crate::identity::{IdentityError, Validity, moment, unix_now};
use crate::scheduler_call::{self, CallError};
use crate::telemetry::Chain;
use crate::tls::{self, TlsError};

const PATH: &str = "/api/stokehold/v1/renew";
/// The wall clock may be set at any moment, so it is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(600);
/// For the one try before anything else of a daemon whose certificate has expired.
const FIRST_TRY: Duration = Duration::from_secs(5);
/// No configuration makes certificates for longer; those of versions before renewal were.
const LONGEST_LIFE_S: i64 = 400 * 86_400;
/// A fleet that is told of another authority must not come all at once.
const SPREAD: Duration = Duration::from_secs(30);

/// Seconds for which a certificate was made.
pub fn life_of(validity: Validity) -> i64 {
    let whole = validity.not_after - validity.not_before;
    let backdated = i64::try_from(BACKDATE.as_secs()).unwrap_or(0);
    if whole > backdated {
        whole - backdated
    } else {
        whole.max(1)
    }
}

/// When to renew: after two thirds of its life, up to a twentieth earlier by `spread` (0 to 1), so
/// that nodes that joined together do not come together. One from before renewal is due at once.
pub fn due(validity: Validity, spread: f64) -> i64 {
    let life = life_of(validity);
    if life > LONGEST_LIFE_S {
        return validity.not_before;
    }
    let earlier = (life as f64 / 20.0 * spread.clamp(0.0, 1.0)) as i64;
    validity.not_after - life / 3 - earlier
}

/// Whether a failure is worth a warning: less than a sixth of the life is left.
pub fn is_pressing(validity: Validity, now: i64) -> bool {
    validity.not_after - now < life_of(validity) / 6
}

#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("no scheduler address: set `scheduler` in the configuration, or join again")]
    NoAddress,
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the key cannot be certified again: {0}")]
    Key(String),
    #[error("the renewed certificate is not usable")]
    Unusable(#[from] CredentialsError),
}

/// The task that renews.
pub struct Renewal {
    credentials: Credentials,
    /// `host:port` of the scheduler's REST API, tried in turn.
    addresses: Vec<String>,
    expiry: Gauge,
    problem: watch::Sender<Option<String>>,
}

impl Renewal {
    pub fn new(credentials: Credentials, addresses: Vec<String>, registry: &mut Registry) -> Self {
        let expiry = Gauge::default();
        let role = credentials.identity().subject.role;
        register_expiry(registry, role.as_str(), &expiry);
        expiry.set(credentials.validity().not_after);
        Self {
            credentials,
            addresses,
            expiry,
            problem: watch::channel(None).0,
        }
    }

    /// What is wrong with the certificate, for `/readyz`: it has expired, and why it is not renewed.
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// Renews a certificate that has expired before anything is tried with it. A failure is not the
    /// end: [`Renewal::run`] goes on trying.
    pub async fn if_expired(&self) {
        if !self.credentials.is_expired() {
            return;
        }
        let expired = moment(self.credentials.validity().not_after);
        match tokio::time::timeout(FIRST_TRY, self.renew()).await {
            Ok(Ok(())) => info!(expired, "the certificate had expired and was renewed"),
            Ok(Err(error)) => self.complain(&error),
            Err(_) => warn!(
                expired,
                "the certificate has expired and the scheduler is slow"
            ),
        }
    }

    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut signer = self.credentials.signer_changes();
        let mut retry = Retry::default();
        let mut spread = rand::rng().random_range(0.0..1.0);
        loop {
            let validity = self.credentials.validity();
            let now = unix_now();
            let older = self.credentials.is_of_older_authority();
            let wait = if let Some(wait) = retry.wait {
                wait
            } else if now >= due(validity, spread) {
                Duration::ZERO
            } else if older {
                let most = Duration::from_secs(life_of(validity).unsigned_abs() / 60).min(SPREAD);
                most.mul_f64(rand::rng().random_range(0.0..1.0))
            } else {
                let left = (due(validity, spread) - now).unsigned_abs();
                Duration::from_secs(left).min(LOOK_EVERY)
            };
            if !wait.is_zero() {
                tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    Ok(()) = signer.changed() => continue,
                    () = tokio::time::sleep(wait) => {}
                }
            }
            let wanted = retry.wait.is_some()
                || unix_now() >= due(self.credentials.validity(), spread)
                || older;
            if !wanted {
                continue;
            }
            let renewed = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                renewed = self.renew() => renewed,
            };
            match renewed {
                Ok(()) => {
                    let until = moment(self.credentials.validity().not_after);
                    info!(until, "certificate renewed");
                    retry = Retry::default();
                    spread = rand::rng().random_range(0.0..1.0);
                }
                Err(error) => {
                    let reason = Chain(&error).to_string();
                    let pressing = is_pressing(validity, unix_now());
                    if retry.is_news(&reason, pressing) {
                        self.complain(&error);
                    }
                    let share = rand::rng().random_range(0.5..1.0);
                    retry.failed(reason, pressing, life_of(validity), share);
                    let problem = self.credentials.is_expired().then(|| {
                        let expired = moment(self.credentials.validity().not_after);
                        format!("the certificate expired at {expired}: {}", retry.reason)
                    });
                    self.problem.send_replace(problem);
                }
            }
        }
    }

    fn complain(&self, error: &RenewError) {
        let validity = self.credentials.validity();
        let until = moment(validity.not_after);
        let error = Chain(error);
        if is_pressing(validity, unix_now()) {
            warn!(%error, until, "the certificate could not be renewed and will soon be refused");
        } else {
            info!(%error, until, "the certificate could not be renewed yet");
        }
    }

    async fn renew(&self) -> Result<(), RenewError> {
        let identity = self.credentials.identity();
        let request = RenewRequest {
            role: identity.subject.role,
            node: identity.subject.node.clone(),
            csr_pem: identity.request_again().map_err(RenewError::Key)?,
            certificate_pem: self.credentials.certificate_pem(),
        };
        let mut failed = RenewError::NoAddress;
        for address in &self.addresses {
            let tls = tls::https_client(&identity.authorities)?;
            let reply = scheduler_call::post(address, PATH, tls, &request).await;
            match reply {
                Ok(RenewReply {
                    certificate_pem,
                    ca_pem,
                }) => {
                    self.credentials.renewed(&certificate_pem, &ca_pem)?;
                    self.expiry.set(self.credentials.validity().not_after);
                    self.problem.send_replace(None);
                    return Ok(());
                }
                Err(error) if error.is_unreachable() => failed = error.into(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(failed)
    }
}

/// Adds the gauge `stokehold_DAEMON_certificate_expiry_seconds`.
pub fn register_expiry(registry: &mut Registry, daemon: &str, expiry: &Gauge) {
    registry
        .sub_registry_with_prefix(format!("stokehold_{daemon}"))
        .register(
            "certificate_expiry_seconds",
            "When this daemon's certificate expires, in Unix seconds",
            expiry.clone(),
        );
}

/// Waits longer after each failure, and remembers which one was told.
#[derive(Debug, Default)]
struct Retry {
    wait: Option<Duration>,
    step: Option<Duration>,
    reason: String,
    pressing: bool,
}

impl Retry {
    fn is_news(&self, reason: &str, pressing: bool) -> bool {
        self.reason != reason || self.pressing != pressing
    }

    /// Doubles up to ten minutes or a twentieth of the life.
    fn failed(&mut self, reason: String, pressing: bool, life_s: i64, share: f64) {
        let longest =
            Duration::from_secs(life_s.unsigned_abs() / 20).clamp(RETRY_FIRST, RETRY_LAST);
        let step = self
            .step
            .map_or(RETRY_FIRST, |step| (step * 2).min(longest));
        self.step = Some(step);
        self.wait = Some(step.mul_f64(share));
        self.reason = reason;
        self.pressing = pressing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn a_week() -> Validity {
        Validity {
            not_before: -7200,
            not_after: 7 * DAY,
        }
    }

    #[test]
    fn a_week_is_renewed_after_two_thirds_and_up_to_a_twentieth_earlier() {
        assert_eq!(life_of(a_week()), 7 * DAY);
        assert_eq!(due(a_week(), 0.0), 7 * DAY - 7 * DAY / 3);
        assert_eq!(due(a_week(), 1.0), 7 * DAY - 7 * DAY / 3 - 7 * DAY / 20);
    }

    #[test]
    fn a_certificate_of_years_from_before_renewal_is_due_at_once() {
        let years = Validity {
            not_before: 1000,
            not_after: 5 * 365 * DAY,
        };
        assert_eq!(due(years, 0.0), 1000);
    }

    #[test]
    fn a_failure_is_pressing_in_the_last_sixth() {
        assert!(!is_pressing(a_week(), 7 * DAY - 7 * DAY / 6));
        assert!(is_pressing(a_week(), 7 * DAY - 7 * DAY / 6 + 1));
        assert!(is_pressing(a_week(), 9 * DAY));
    }

    #[test]
    fn retries_double_up_to_ten_minutes_and_a_short_life_is_tried_often() {
        let mut retry = Retry::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            retry.failed("x".into(), false, 7 * DAY, 1.0);
            waits.push(retry.wait.expect("a wait").as_secs());
        }
        assert_eq!(waits[..4], [1, 2, 4, 8]);
        assert_eq!(waits[11], 600);
        let mut short = Retry::default();
        for _ in 0..9 {
            short.failed("x".into(), false, 30, 1.0);
        }
        assert_eq!(short.wait, Some(Duration::from_secs(1)));
        assert!(!short.is_news("x", false));
        assert!(short.is_news("x", true));
    }
}
