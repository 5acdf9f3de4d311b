//! A gateway's report as protobuf.

use std::time::Duration;

use prost::Message;

use super::{Numbers, WireError, numbers, text};
use crate::ids::ServedEntityId;
use crate::report as checked;

#[derive(Clone, PartialEq, Message)]
pub struct GatewayReport {
    #[prost(message, optional, tag = "1")]
    pub routes: Option<Numbers>,
    #[prost(message, repeated, tag = "2")]
    pub replicas: Vec<ReplicaHealth>,
    #[prost(message, repeated, tag = "3")]
    pub traffic: Vec<Traffic>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReplicaHealth {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(enumeration = "HealthState", tag = "2")]
    pub health: i32,
    #[prost(string, tag = "3")]
    pub detail: String,
    #[prost(uint32, tag = "4")]
    pub in_flight: u32,
    #[prost(message, optional, tag = "5")]
    pub load: Option<ReplicaLoad>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReplicaLoad {
    #[prost(uint32, tag = "1")]
    pub over_ms: u32,
    #[prost(double, tag = "2")]
    pub active: f64,
    #[prost(uint64, tag = "3")]
    pub completions: u64,
    #[prost(double, optional, tag = "4")]
    pub p50_ms: Option<f64>,
    #[prost(double, optional, tag = "5")]
    pub p95_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum HealthState {
    Starting = 0,
    Healthy = 1,
    Unhealthy = 2,
}

#[derive(Clone, PartialEq, Message)]
pub struct Traffic {
    #[prost(string, tag = "1")]
    pub endpoint: String,
    #[prost(string, tag = "2")]
    pub entity: String,
    #[prost(uint32, tag = "3")]
    pub over_ms: u32,
    #[prost(uint64, tag = "4")]
    pub arrivals: u64,
    #[prost(uint64, tag = "5")]
    pub completions: u64,
    #[prost(uint64, tag = "6")]
    pub rejected: u64,
    #[prost(uint64, tag = "7")]
    pub failed: u64,
    #[prost(double, tag = "8")]
    pub active: f64,
    #[prost(double, tag = "9")]
    pub queued: f64,
    #[prost(double, optional, tag = "10")]
    pub p50_ms: Option<f64>,
    #[prost(double, optional, tag = "11")]
    pub p95_ms: Option<f64>,
    #[prost(double, optional, tag = "12")]
    pub p99_ms: Option<f64>,
}

impl From<&checked::GatewayReport> for GatewayReport {
    fn from(report: &checked::GatewayReport) -> Self {
        Self {
            routes: report
                .routes
                .map(|(epoch, revision)| numbers(epoch, revision)),
            replicas: report
                .replicas
                .iter()
                .map(|replica| ReplicaHealth {
                    id: replica.id.to_string(),
                    health: match replica.health {
                        checked::Health::Starting => HealthState::Starting,
                        checked::Health::Healthy => HealthState::Healthy,
                        checked::Health::Unhealthy => HealthState::Unhealthy,
                    }
                    .into(),
                    detail: replica.detail.clone(),
                    in_flight: replica.in_flight,
                    load: replica.load.as_ref().map(ReplicaLoad::from),
                })
                .collect(),
            traffic: report.traffic.iter().map(Traffic::from).collect(),
        }
    }
}

impl TryFrom<GatewayReport> for checked::GatewayReport {
    type Error = WireError;
    fn try_from(report: GatewayReport) -> Result<Self, WireError> {
        let replicas = report.replicas.into_iter().map(|replica| {
            Ok(checked::ReplicaHealth {
                id: text("ReplicaHealth", "id", &replica.id)?,
                health: match replica.health() {
                    HealthState::Starting => checked::Health::Starting,
                    HealthState::Healthy => checked::Health::Healthy,
                    HealthState::Unhealthy => checked::Health::Unhealthy,
                },
                detail: replica.detail,
                in_flight: replica.in_flight,
                load: replica.load.map(TryInto::try_into).transpose()?,
            })
        });
        Ok(Self {
            routes: report.routes.map(Into::into),
            replicas: replicas.collect::<Result<_, WireError>>()?,
            traffic: report
                .traffic
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, WireError>>()?,
        })
    }
}

impl From<&checked::ReplicaLoad> for ReplicaLoad {
    fn from(load: &checked::ReplicaLoad) -> Self {
        Self {
            over_ms: millis(load.over),
            active: load.active,
            completions: load.completions,
            p50_ms: load.p50_ms,
            p95_ms: load.p95_ms,
        }
    }
}

impl TryFrom<ReplicaLoad> for checked::ReplicaLoad {
    type Error = WireError;
    fn try_from(load: ReplicaLoad) -> Result<Self, WireError> {
        let measured = |field, value| measured("ReplicaLoad", field, value);
        Ok(Self {
            over: Duration::from_millis(load.over_ms.into()),
            active: measured("active", load.active)?,
            completions: load.completions,
            p50_ms: load.p50_ms.map(|ms| measured("p50_ms", ms)).transpose()?,
            p95_ms: load.p95_ms.map(|ms| measured("p95_ms", ms)).transpose()?,
        })
    }
}

impl From<&checked::EntityTraffic> for Traffic {
    fn from(traffic: &checked::EntityTraffic) -> Self {
        Self {
            endpoint: traffic.id.endpoint.to_string(),
            entity: traffic.id.entity.to_string(),
            over_ms: millis(traffic.over),
            arrivals: traffic.arrivals,
            completions: traffic.completions,
            rejected: traffic.rejected,
            failed: traffic.failed,
            active: traffic.active,
            queued: traffic.queued,
            p50_ms: traffic.p50_ms,
            p95_ms: traffic.p95_ms,
            p99_ms: traffic.p99_ms,
        }
    }
}

impl TryFrom<Traffic> for checked::EntityTraffic {
    type Error = WireError;
    fn try_from(traffic: Traffic) -> Result<Self, WireError> {
        let load = |field, value| measured("Traffic", field, value);
        Ok(Self {
            id: ServedEntityId {
                endpoint: text("Traffic", "endpoint", &traffic.endpoint)?,
                entity: text("Traffic", "entity", &traffic.entity)?,
            },
            over: Duration::from_millis(traffic.over_ms.into()),
            arrivals: traffic.arrivals,
            completions: traffic.completions,
            rejected: traffic.rejected,
            failed: traffic.failed,
            active: load("active", traffic.active)?,
            queued: load("queued", traffic.queued)?,
            p50_ms: traffic.p50_ms,
            p95_ms: traffic.p95_ms,
            p99_ms: traffic.p99_ms,
        })
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn measured(message: &'static str, field: &'static str, value: f64) -> Result<f64, WireError> {
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        let problem = "expected a finite number of 0 or more";
        Err(WireError::new(message, field, problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ReplicaId;

    #[test]
    fn a_load_that_is_not_a_number_is_refused() {
        let traffic = Traffic {
            endpoint: "iris".into(),
            entity: "iris-1".into(),
            active: f64::NAN,
            ..Default::default()
        };
        assert!(checked::EntityTraffic::try_from(traffic).is_err());
    }

    fn health(load: Option<checked::ReplicaLoad>) -> checked::GatewayReport {
        checked::GatewayReport {
            routes: None,
            replicas: vec![checked::ReplicaHealth {
                id: ReplicaId::from_bits(1),
                health: checked::Health::Healthy,
                detail: String::new(),
                in_flight: 3,
                load,
            }],
            traffic: Vec::new(),
        }
    }

    fn load() -> checked::ReplicaLoad {
        checked::ReplicaLoad {
            over: Duration::from_millis(1_000),
            active: 2.5,
            completions: 50,
            p50_ms: Some(48.0),
            p95_ms: None,
        }
    }

    #[test]
    fn a_replicas_load_survives_the_wire_and_its_absence_does_too() {
        for report in [health(Some(load())), health(None)] {
            let bytes = GatewayReport::from(&report).encode_to_vec();
            let back = GatewayReport::decode(bytes.as_slice()).expect("decodes");
            assert_eq!(checked::GatewayReport::try_from(back), Ok(report));
        }
    }

    #[test]
    fn a_replicas_load_that_is_not_a_number_or_below_zero_is_refused_by_its_field() {
        type Spoil = fn(&mut ReplicaLoad);
        let spoils: [(&str, Spoil); 3] = [
            ("active", |load| load.active = -1.0),
            ("p50_ms", |load| load.p50_ms = Some(f64::INFINITY)),
            ("p95_ms", |load| load.p95_ms = Some(f64::NAN)),
        ];
        for (field, spoil) in spoils {
            let mut wire = ReplicaLoad::from(&load());
            spoil(&mut wire);
            let error = checked::ReplicaLoad::try_from(wire).expect_err("refused");
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
