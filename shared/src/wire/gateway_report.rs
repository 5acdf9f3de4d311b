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

impl From<&checked::EntityTraffic> for Traffic {
    fn from(traffic: &checked::EntityTraffic) -> Self {
        Self {
            endpoint: traffic.id.endpoint.to_string(),
            entity: traffic.id.entity.to_string(),
            over_ms: u32::try_from(traffic.over.as_millis()).unwrap_or(u32::MAX),
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
        let load = |field, value: f64| {
            if value.is_finite() && value >= 0.0 {
                Ok(value)
            } else {
                Err(WireError::new(
                    "Traffic",
                    field,
                    "expected a finite number of 0 or more",
                ))
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
