//! Renders what each node should hold and run. Revisions grow only where contents change.

use std::collections::BTreeMap;

use shared::ids::{ImageRef, NodeName, Revision};
use shared::manifest::ManifestId;
use shared::plan::{ContainerSpec, Plan, PlannedImage, PlannedModel, PlannedReplica};
use shared::runtime::RuntimeTemplate;
use shared::spec::ServedEntity;
use shared::units::MonoTime;

use crate::core::Core;
use crate::node::{Contact, Node};
use crate::replica::Replica;

impl Core {
    /// Renders every node's plan and returns those that changed.
    pub(crate) fn publish_plans(&mut self, now: MonoTime) -> Vec<Plan> {
        let mut changed = Vec::new();
        for (name, node) in &self.nodes {
            if !self.plannable(node, now) {
                if node.revoked {
                    self.plans.remove(name);
                }
                continue;
            }
            let held = self.plans.get(name);
            let mut plan = self.render_plan(name, node);
            plan.revision = held.map_or(Revision(0), |held| held.revision);
            if held != Some(&plan) {
                plan.revision = Revision(plan.revision.0 + 1);
                changed.push(plan);
            }
        }
        for plan in &changed {
            self.plans.insert(plan.node.clone(), plan.clone());
        }
        changed
    }

    /// Nothing is started or stopped on a node before it has reported, or could have.
    fn plannable(&self, node: &Node, now: MonoTime) -> bool {
        let heard_of = node.agent_contact(self.settings.lease, now) != Contact::Awaited;
        node.takes_part() && heard_of && !node.revoked
    }

    fn render_plan(&self, name: &NodeName, node: &Node) -> Plan {
        let replicas: Vec<&Replica> = node
            .replicas
            .iter()
            .filter_map(|id| self.replicas.get(id))
            .filter(|replica| replica.planned())
            .collect();
        Plan {
            cluster: self.settings.cluster.clone(),
            epoch: self.epoch,
            revision: Revision(0),
            node: name.clone(),
            images: self.planned_images(&replicas, node),
            models: planned_models(&replicas),
            replicas: replicas.into_iter().map(planned_replica).collect(),
        }
    }

    /// The images of replicas, and those of every runtime that the node may serve: pulled ahead of
    /// need.
    fn planned_images(&self, replicas: &[&Replica], node: &Node) -> Vec<PlannedImage> {
        let runtimes = self.settings.templates.values();
        let runtimes = runtimes.filter(|template| node.may_serve(template));
        let running = replicas.iter().map(|replica| replica.template.as_ref());
        let images: BTreeMap<&ImageRef, &PlannedImage> = runtimes
            .chain(running)
            .filter_map(|template| self.registry.image(&template.image))
            .map(|image| (&image.reference, image))
            .collect();
        images.into_values().cloned().collect()
    }
}

fn planned_models(replicas: &[&Replica]) -> Vec<PlannedModel> {
    let models: BTreeMap<ManifestId, PlannedModel> = replicas
        .iter()
        .map(|replica| {
            let entity = &replica.entity;
            let model = PlannedModel {
                manifest: entity.manifest,
                label: format!("{}/{}", entity.model, entity.model_version),
                size_bytes: replica.model_size_bytes,
            };
            (entity.manifest, model)
        })
        .collect();
    models.into_values().collect()
}

fn planned_replica(replica: &Replica) -> PlannedReplica {
    PlannedReplica {
        id: replica.id.clone(),
        endpoint: replica.endpoint.clone(),
        entity: replica.set.entity.clone(),
        config_version: replica.set.generation,
        image: replica.template.image.clone(),
        model: replica.entity.manifest,
        container: container(&replica.template, &replica.entity),
    }
}

/// A template with what the served entity says otherwise.
fn container(template: &RuntimeTemplate, entity: &ServedEntity) -> ContainerSpec {
    let mut environment = template.environment.clone();
    environment.extend(entity.environment.clone());
    ContainerSpec {
        command: template.command.clone(),
        environment,
        resources: entity.resources,
        shm_bytes: template.shm_bytes,
        tmp_bytes: template.tmp_bytes,
        model_mount: template.model_mount.clone(),
        transport: template.transport,
        port: template.port,
        egress: template.egress.clone(),
        invocations_path: template.invocations_path.clone(),
        health: template.health.clone(),
        stop_signal: template.stop_signal.clone(),
        stop_grace_seconds: template.stop_grace_seconds,
    }
}
