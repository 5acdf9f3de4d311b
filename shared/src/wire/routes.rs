//! Routes as protobuf.

use prost::Message;

use super::{WireError, required, text};
use crate::ids::{Epoch, Revision};
use crate::routes as checked;
use crate::spec::TokenRole;

#[derive(Clone, PartialEq, Message)]
pub struct Routes {
    #[prost(string, tag = "1")]
    pub cluster: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    #[prost(message, repeated, tag = "4")]
    pub endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "5")]
    pub tokens: Vec<Token>,
    #[prost(message, repeated, tag = "6")]
    pub gateways: Vec<Gateway>,
    #[prost(string, repeated, tag = "7")]
    pub revoked_nodes: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Endpoint {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(message, repeated, tag = "3")]
    pub entities: Vec<Entity>,
    #[prost(message, optional, tag = "4")]
    pub limits: Option<Limits>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Limits {
    #[prost(uint32, tag = "1")]
    pub request_timeout_ms: u32,
    #[prost(uint32, tag = "2")]
    pub queue_capacity: u32,
    #[prost(uint64, tag = "3")]
    pub max_body_bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Entity {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub percent: u32,
    #[prost(uint32, tag = "3")]
    pub target_concurrency: u32,
    #[prost(string, tag = "4")]
    pub invocations_path: String,
    #[prost(message, repeated, tag = "5")]
    pub replicas: Vec<Replica>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Replica {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub node: String,
    #[prost(bool, tag = "3")]
    pub draining: bool,
    #[prost(uint32, optional, tag = "4")]
    pub target_concurrency: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Token {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
    /// `query`, `manage` or `admin`.
    #[prost(string, tag = "3")]
    pub role: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Gateway {
    #[prost(string, tag = "1")]
    pub node: String,
    #[prost(string, tag = "2")]
    pub address: String,
}

impl From<&checked::Routes> for Routes {
    fn from(routes: &checked::Routes) -> Self {
        Self {
            cluster: routes.cluster.to_string(),
            epoch: routes.epoch.0,
            revision: routes.revision.0,
            endpoints: routes.endpoints.iter().map(Endpoint::from).collect(),
            tokens: routes
                .tokens
                .iter()
                .map(|token| Token {
                    id: token.id.to_string(),
                    hash: token.hash.to_vec(),
                    role: token.role.as_str().to_owned(),
                })
                .collect(),
            gateways: routes
                .gateways
                .iter()
                .map(|gateway| Gateway {
                    node: gateway.node.to_string(),
                    address: gateway.address.clone(),
                })
                .collect(),
            revoked_nodes: routes
                .revoked_nodes
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }
}

impl From<&checked::EndpointRoute> for Endpoint {
    fn from(endpoint: &checked::EndpointRoute) -> Self {
        Self {
            name: endpoint.name.to_string(),
            id: endpoint.id.to_string(),
            limits: Some(Limits {
                request_timeout_ms: endpoint.limits.request_timeout_ms,
                queue_capacity: endpoint.limits.queue_capacity,
                max_body_bytes: endpoint.limits.max_body_bytes,
            }),
            entities: endpoint
                .entities
                .iter()
                .map(|entity| Entity {
                    name: entity.name.to_string(),
                    percent: entity.percent,
                    target_concurrency: entity.target_concurrency,
                    invocations_path: entity.invocations_path.clone(),
                    replicas: entity
                        .replicas
                        .iter()
                        .map(|replica| Replica {
                            id: replica.id.to_string(),
                            node: replica.node.to_string(),
                            draining: replica.draining,
                            target_concurrency: replica.target_concurrency,
                        })
                        .collect(),
                })
                .collect(),
        }
    }
}

impl TryFrom<Routes> for checked::Routes {
    type Error = WireError;
    fn try_from(routes: Routes) -> Result<Self, WireError> {
        let endpoints = routes.endpoints.into_iter().map(TryInto::try_into);
        let tokens = routes.tokens.into_iter().map(|token| {
            Ok(checked::TokenGrant {
                id: text("Token", "id", &token.id)?,
                hash: token
                    .hash
                    .as_slice()
                    .try_into()
                    .map_err(|_| WireError::new("Token", "hash", "expected 32 bytes"))?,
                role: text::<TokenRole>("Token", "role", &token.role)?,
            })
        });
        let gateways = routes.gateways.into_iter().map(|gateway| {
            Ok(checked::GatewayAddress {
                node: text("Gateway", "node", &gateway.node)?,
                address: gateway.address,
            })
        });
        let revoked = routes.revoked_nodes.iter();
        Ok(Self {
            cluster: text("Routes", "cluster", &routes.cluster)?,
            epoch: Epoch(routes.epoch),
            revision: Revision(routes.revision),
            endpoints: endpoints.collect::<Result<_, WireError>>()?,
            tokens: tokens.collect::<Result<_, WireError>>()?,
            gateways: gateways.collect::<Result<_, WireError>>()?,
            revoked_nodes: revoked
                .map(|node| text("Routes", "revoked_nodes", node))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<Endpoint> for checked::EndpointRoute {
    type Error = WireError;
    fn try_from(endpoint: Endpoint) -> Result<Self, WireError> {
        let limits = required("Endpoint", "limits", endpoint.limits)?;
        let entities = endpoint.entities.into_iter().map(TryInto::try_into);
        Ok(Self {
            name: text("Endpoint", "name", &endpoint.name)?,
            id: text("Endpoint", "id", &endpoint.id)?,
            entities: entities.collect::<Result<_, WireError>>()?,
            limits: checked::EndpointLimits {
                request_timeout_ms: limits.request_timeout_ms,
                queue_capacity: limits.queue_capacity,
                max_body_bytes: limits.max_body_bytes,
            },
        })
    }
}

impl TryFrom<Entity> for checked::EntityRoute {
    type Error = WireError;
    fn try_from(entity: Entity) -> Result<Self, WireError> {
        if entity.target_concurrency == 0 {
            return Err(WireError::new("Entity", "target_concurrency", "is zero"));
        }
        if entity.percent > 100 {
            return Err(WireError::new("Entity", "percent", "is over 100"));
        }
        let replicas = entity.replicas.into_iter().map(|replica| {
            if replica.target_concurrency == Some(0) {
                return Err(WireError::new("Replica", "target_concurrency", "is zero"));
            }
            Ok(checked::ReplicaRoute {
                id: text("Replica", "id", &replica.id)?,
                node: text("Replica", "node", &replica.node)?,
                draining: replica.draining,
                target_concurrency: replica.target_concurrency,
            })
        });
        Ok(Self {
            name: text("Entity", "name", &entity.name)?,
            percent: entity.percent,
            target_concurrency: entity.target_concurrency,
            invocations_path: entity.invocations_path,
            replicas: replicas.collect::<Result<_, WireError>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{
        ClusterId, EndpointId, EndpointName, EntityName, NodeName, ReplicaId, TokenId,
    };

    fn routes() -> checked::Routes {
        checked::Routes {
            cluster: ClusterId::from_bits(1),
            epoch: Epoch(1),
            revision: Revision(2),
            endpoints: vec![checked::EndpointRoute {
                name: EndpointName::parse("iris").expect("valid"),
                id: EndpointId::from_bits(3),
                limits: checked::EndpointLimits::default(),
                entities: vec![checked::EntityRoute {
                    name: EntityName::parse("iris-1").expect("valid"),
                    percent: 100,
                    target_concurrency: 4,
                    invocations_path: "/invocations".into(),
                    replicas: vec![replica(5, None), replica(8, Some(6))],
                }],
            }],
            tokens: vec![checked::TokenGrant {
                id: TokenId::from_bits(6),
                hash: [7; 32],
                role: TokenRole::Query,
            }],
            gateways: vec![checked::GatewayAddress {
                node: NodeName::parse("n1").expect("valid"),
                address: "127.0.0.1:8444".into(),
            }],
            revoked_nodes: vec![NodeName::parse("n9").expect("valid")],
        }
    }

    fn replica(id: u64, target_concurrency: Option<u32>) -> checked::ReplicaRoute {
        checked::ReplicaRoute {
            id: ReplicaId::from_bits(id),
            node: NodeName::parse("n1").expect("valid"),
            draining: false,
            target_concurrency,
        }
    }

    #[test]
    fn a_replica_takes_what_its_own_route_says_and_else_what_the_entitys_does() {
        let entity = &routes().endpoints[0].entities[0];
        let limits = entity.replicas.iter().map(|r| entity.limit_of(r));
        assert_eq!(limits.collect::<Vec<_>>(), [4, 6]);
    }

    #[test]
    fn routes_survive_the_wire() {
        let bytes = Routes::from(&routes()).encode_to_vec();
        let back = Routes::decode(bytes.as_slice()).expect("decodes");
        assert_eq!(checked::Routes::try_from(back), Ok(routes()));
    }

    #[test]
    fn a_target_concurrency_of_zero_is_refused() {
        let mut bad = Routes::from(&routes());
        bad.endpoints[0].entities[0].target_concurrency = 0;
        assert!(checked::Routes::try_from(bad).is_err());
        let mut bad = Routes::from(&routes());
        bad.endpoints[0].entities[0].replicas[0].target_concurrency = Some(0);
        assert!(checked::Routes::try_from(bad).is_err());
    }
}
