//! The routes in use: an immutable snapshot for lookups, and the rule by which new ones take over.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use shared::ids::{ClusterId, EndpointName, EntityName, Epoch, NodeName, ReplicaId, Revision};
use shared::routes::{EndpointLimits, EntityRoute, ReplicaRoute, Routes};
use shared::spec::TokenRole;

use crate::lane::Lane;

/// Why routes were not taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("routes are of cluster {theirs}, this gateway belongs to {ours}")]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    #[error(
        "routes {theirs_epoch}.{theirs_revision} are older than {epoch}.{revision}, which are in use"
    )]
    Older {
        epoch: Epoch,
        revision: Revision,
        theirs_epoch: Epoch,
        theirs_revision: Revision,
    },
    #[error("routes {epoch}.{revision} came a second time with other contents")]
    Conflict { epoch: Epoch, revision: Revision },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accepted {
    New,
    /// They are in use already.
    Same,
}

/// Whether routes take over from those in use.
pub(crate) fn accept(
    cluster: &ClusterId,
    current: Option<&Routes>,
    offered: &Routes,
) -> Result<Accepted, Refused> {
    if offered.cluster != *cluster {
        return Err(Refused::OtherCluster {
            ours: cluster.clone(),
            theirs: offered.cluster.clone(),
        });
    }
    let Some(current) = current else {
        return Ok(Accepted::New);
    };
    let (ours, theirs) = (
        (current.epoch, current.revision),
        (offered.epoch, offered.revision),
    );
    if theirs > ours {
        Ok(Accepted::New)
    } else if theirs < ours {
        Err(Refused::Older {
            epoch: ours.0,
            revision: ours.1,
            theirs_epoch: theirs.0,
            theirs_revision: theirs.1,
        })
    } else if current == offered {
        Ok(Accepted::Same)
    } else {
        Err(Refused::Conflict {
            epoch: ours.0,
            revision: ours.1,
        })
    }
}

/// Routes, indexed for requests.
pub(crate) struct Table {
    pub(crate) routes: Arc<Routes>,
    endpoints: HashMap<EndpointName, Arc<Endpoint>>,
    tokens: HashMap<[u8; 32], TokenRole>,
    gateways: HashMap<NodeName, String>,
    revoked: HashSet<NodeName>,
}

pub(crate) struct Endpoint {
    pub(crate) limits: EndpointLimits,
    pub(crate) entities: Vec<Entity>,
}

pub(crate) struct Entity {
    pub(crate) name: EntityName,
    pub(crate) percent: u32,
    target_concurrency: u32,
    /// Of the replicas that differ from the entity, which are few.
    own_limits: HashMap<ReplicaId, u32>,
    pub(crate) lane: Arc<Lane>,
}

impl Table {
    /// `lanes` are those of the routes' entities, in the same order.
    pub(crate) fn new(routes: Arc<Routes>, lanes: Vec<Vec<Arc<Lane>>>) -> Self {
        let endpoints = routes.endpoints.iter().zip(lanes).map(|(endpoint, lanes)| {
            let entities = endpoint
                .entities
                .iter()
                .zip(lanes)
                .map(|(entity, lane)| Entity {
                    name: entity.name.clone(),
                    percent: entity.percent,
                    target_concurrency: entity.target_concurrency,
                    own_limits: own_limits(entity),
                    lane,
                });
            let indexed = Endpoint {
                limits: endpoint.limits,
                entities: entities.collect(),
            };
            (endpoint.name.clone(), Arc::new(indexed))
        });
        Self {
            endpoints: endpoints.collect(),
            tokens: routes.tokens.iter().map(|t| (t.hash, t.role)).collect(),
            gateways: routes
                .gateways
                .iter()
                .map(|g| (g.node.clone(), g.address.clone()))
                .collect(),
            revoked: routes.revoked_nodes.iter().cloned().collect(),
            routes,
        }
    }

    pub(crate) fn endpoint(&self, name: &EndpointName) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(name)
    }

    /// The role that a token has; `None` for an unknown one.
    pub(crate) fn role_of(&self, token: &str) -> Option<TokenRole> {
        self.tokens.get(&shared::token::hash(token)).copied()
    }

    pub(crate) fn gateway_of(&self, node: &NodeName) -> Option<&str> {
        self.gateways.get(node).map(String::as_str)
    }

    pub(crate) fn is_revoked(&self, node: &NodeName) -> bool {
        self.revoked.contains(node)
    }
}

impl Entity {
    /// How many requests the replica accepts at once. One that these routes do not have yet is taken
    /// for one like the others.
    pub(crate) fn limit_of(&self, replica: &ReplicaId) -> u32 {
        let own = self.own_limits.get(replica);
        own.copied().unwrap_or(self.target_concurrency)
    }
}

fn own_limits(entity: &EntityRoute) -> HashMap<ReplicaId, u32> {
    let own = |replica: &ReplicaRoute| Some((replica.id.clone(), replica.target_concurrency?));
    entity.replicas.iter().filter_map(own).collect()
}

impl Endpoint {
    pub(crate) fn entity(&self, name: &EntityName) -> Option<&Entity> {
        self.entities.iter().find(|e| e.name == *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::{EndpointId, TokenId};
    use shared::routes::{EndpointRoute, TokenGrant};

    fn routes(epoch: u64, revision: u64) -> Routes {
        Routes {
            cluster: ClusterId::from_bits(1),
            epoch: Epoch(epoch),
            revision: Revision(revision),
            endpoints: vec![EndpointRoute {
                name: EndpointName::parse("iris").expect("valid"),
                id: EndpointId::from_bits(1),
                entities: Vec::new(),
                limits: EndpointLimits::default(),
            }],
            tokens: vec![TokenGrant {
                id: TokenId::from_bits(1),
                hash: shared::token::hash("shk_1"),
                role: TokenRole::Query,
            }],
            gateways: Vec::new(),
            revoked_nodes: Vec::new(),
        }
    }

    fn offer(current: &Routes, offered: &Routes) -> Result<Accepted, Refused> {
        accept(&ClusterId::from_bits(1), Some(current), offered)
    }

    #[test]
    fn a_higher_revision_or_epoch_takes_over_and_a_lower_one_does_not() {
        assert_eq!(offer(&routes(2, 5), &routes(2, 6)), Ok(Accepted::New));
        assert_eq!(offer(&routes(2, 5), &routes(3, 1)), Ok(Accepted::New));
        for older in [routes(2, 4), routes(1, 9)] {
            assert!(matches!(
                offer(&routes(2, 5), &older),
                Err(Refused::Older { .. })
            ));
        }
    }

    #[test]
    fn the_same_numbers_are_accepted_with_the_same_contents_only() {
        let current = routes(2, 5);
        assert_eq!(offer(&current, &current.clone()), Ok(Accepted::Same));
        let mut other = current.clone();
        other.tokens.clear();
        assert!(matches!(
            offer(&current, &other),
            Err(Refused::Conflict { .. })
        ));
    }

    #[test]
    fn routes_of_another_cluster_are_refused_even_as_the_first() {
        let offered = routes(1, 1);
        let refused = accept(&ClusterId::from_bits(2), None, &offered);
        assert!(matches!(refused, Err(Refused::OtherCluster { .. })));
        assert_eq!(
            accept(&ClusterId::from_bits(1), None, &offered),
            Ok(Accepted::New)
        );
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let table = Table::new(Arc::new(routes(1, 1)), vec![Vec::new()]);
        assert_eq!(table.role_of("shk_1"), Some(TokenRole::Query));
        assert_eq!(table.role_of("shk_2"), None);
    }
}
