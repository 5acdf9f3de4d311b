//! Whether a replica is healthy, from the results of its probes. Pure.
//!
//! ```text
//! Starting --success--> Healthy --failures in a row--> Unhealthy
//!    |  ^ failure          ^                              |
//!    |__|                  |___________success____________|
//! ```

use std::time::Duration;

use shared::report::Health;
use shared::runtime::HealthProbe;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProbeState {
    /// With what the last probe said.
    Starting {
        last: String,
    },
    Healthy {
        failures_in_a_row: u32,
        last: String,
    },
    Unhealthy {
        last: String,
    },
}

impl ProbeState {
    pub(crate) fn new() -> Self {
        ProbeState::Starting {
            last: "not probed yet".to_owned(),
        }
    }

    pub(crate) fn after(self, result: Result<(), String>, probe: &HealthProbe) -> Self {
        match (self, result) {
            (_, Ok(())) => ProbeState::Healthy {
                failures_in_a_row: 0,
                last: String::new(),
            },
            (ProbeState::Starting { .. }, Err(last)) => ProbeState::Starting { last },
            (ProbeState::Unhealthy { .. }, Err(last)) => ProbeState::Unhealthy { last },
            (
                ProbeState::Healthy {
                    failures_in_a_row, ..
                },
                Err(last),
            ) => {
                let failures_in_a_row = failures_in_a_row + 1;
                if failures_in_a_row >= probe.failures {
                    ProbeState::Unhealthy { last }
                } else {
                    ProbeState::Healthy {
                        failures_in_a_row,
                        last,
                    }
                }
            }
        }
    }

    /// Until the next probe.
    pub(crate) fn wait(&self, probe: &HealthProbe) -> Duration {
        let ms = match self {
            ProbeState::Starting { .. } => probe.interval_ms,
            ProbeState::Healthy { .. } | ProbeState::Unhealthy { .. } => probe.period_ms,
        };
        Duration::from_millis(u64::from(ms))
    }

    pub(crate) fn health(&self) -> Health {
        match self {
            ProbeState::Starting { .. } => Health::Starting,
            ProbeState::Healthy { .. } => Health::Healthy,
            ProbeState::Unhealthy { .. } => Health::Unhealthy,
        }
    }

    pub(crate) fn detail(&self) -> &str {
        match self {
            ProbeState::Starting { last }
            | ProbeState::Healthy { last, .. }
            | ProbeState::Unhealthy { last } => last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> HealthProbe {
        HealthProbe {
            path: "/ping".into(),
            interval_ms: 250,
            period_ms: 2000,
            timeout_ms: 1000,
            failures: 3,
            start_deadline_seconds: 60,
        }
    }

    fn after(results: &[bool]) -> ProbeState {
        results.iter().fold(ProbeState::new(), |state, &ok| {
            let result = if ok {
                Ok(())
            } else {
                Err("refused".to_owned())
            };
            state.after(result, &probe())
        })
    }

    #[test]
    fn a_replica_is_starting_until_one_probe_succeeds_however_many_fail() {
        let state = after(&[false; 10]);
        assert_eq!(
            (state.health(), state.detail()),
            (Health::Starting, "refused")
        );
        assert_eq!(state.wait(&probe()), Duration::from_millis(250));
        assert_eq!(after(&[false, true]).health(), Health::Healthy);
    }

    #[test]
    fn only_failures_in_a_row_make_a_healthy_replica_unhealthy() {
        assert_eq!(
            after(&[true, false, false, true, false, false]).health(),
            Health::Healthy
        );
        assert_eq!(
            after(&[true, false, false, false]).health(),
            Health::Unhealthy
        );
    }

    #[test]
    fn one_success_heals() {
        let state = after(&[true, false, false, false, false, true]);
        assert_eq!((state.health(), state.detail()), (Health::Healthy, ""));
        assert_eq!(state.wait(&probe()), Duration::from_secs(2));
    }
}
