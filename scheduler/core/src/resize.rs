//! Brings each set to its wanted size: places what is missing, takes out what is too much.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use shared::api::events::EventKind;
use shared::ids::{NodeName, ReplicaId};
use shared::spec::ServedEntity;
use shared::units::MonoTime;

use crate::core::{Core, Pass};
use crate::event::Note;
use crate::events::Draft;
use crate::node::{Contact, Node};
use crate::placement::{Candidate, Need, Share, Standing, place};
use crate::replica::{Change, Probed, Replica, Stage};
use crate::set::{Blocked, ReplicaSet, SetId};

/// New replicas of one set in one pass: a mistaken bound must not flood the fleet in a second.
const MAX_PLACED: u32 = 64;

impl Core {
    pub(crate) fn resize_sets(&mut self, pass: &mut Pass<'_>) {
        let ids: Vec<SetId> = self.sets.keys().cloned().collect();
        // First what is too much, so that the room of what never served is free at once.
        for id in &ids {
            self.shrink(id, pass);
        }
        for id in &ids {
            self.grow(id, pass);
        }
    }

    fn shrink(&mut self, id: &SetId, pass: &mut Pass<'_>) {
        let Some(set) = self.sets.get(id) else {
            return;
        };
        let retired = set.entity().is_none();
        if retired {
            self.drop_lost(id, pass);
        }
        let why = if retired {
            "no config asks for it any more"
        } else {
            "fewer replicas are wanted"
        };
        while let Some(victim) = self.surplus(id) {
            let Some(replica) = self.replicas.get_mut(&victim) else {
                return;
            };
            replica.drain(why, pass.now);
            let message = format!("replica on {} is taken out", replica.node);
            pass.tell(
                Draft::normal(EventKind::ReplicaDraining, message)
                    .because(why)
                    .replica(replica),
            );
            let note = Note::info(format!("replica is taken out: {why}"))
                .endpoint(&replica.endpoint)
                .replica(&victim)
                .node(&replica.node);
            pass.effects.notes.push(note);
            self.unwritten.replicas.insert(victim);
        }
    }

    /// Nothing waits for the return of what nobody asks for: the node's agent will stop what its
    /// plan lacks.
    fn drop_lost(&mut self, id: &SetId, pass: &mut Pass<'_>) {
        let members = self.sets.get(id).map(|set| set.members.clone());
        for member in members.unwrap_or_default() {
            let replica = self.replicas.get(&member);
            if replica.is_some_and(|replica| matches!(replica.stage, Stage::Lost { .. })) {
                let why = "its node is lost and no config asks for it".to_owned();
                self.apply_change(&member, Change::Gone { why }, pass);
            }
        }
    }

    /// The replica to take out next, when there is one too many: one that does not serve, else one
    /// from the node with most siblings, else the newest.
    fn surplus(&self, id: &SetId) -> Option<ReplicaId> {
        let set = self.sets.get(id)?;
        let desired = set.desired() as usize;
        let counted: Vec<&Replica> = self.counted(set).collect();
        if counted.len() <= desired {
            return None;
        }
        let mut siblings: BTreeMap<&NodeName, usize> = BTreeMap::new();
        for replica in &counted {
            *siblings.entry(&replica.node).or_default() += 1;
        }
        let rank = |replica: &&Replica| {
            (
                replica.serves(),
                Reverse(siblings.get(&replica.node).copied()),
                Reverse(replica.placed_at),
                replica.id.clone(),
            )
        };
        counted
            .iter()
            .copied()
            .min_by_key(rank)
            .map(|replica| replica.id.clone())
    }

    fn grow(&mut self, id: &SetId, pass: &mut Pass<'_>) {
        let Some(set) = self.sets.get(id) else {
            return;
        };
        let Some(entity) = set.entity().cloned() else {
            return;
        };
        let desired = set.desired();
        let there = u32::try_from(self.counted(set).count()).unwrap_or(u32::MAX);
        let missing = desired.saturating_sub(there);
        let mut blocked = None;
        if missing > 0 && !set.backoff.waits(pass.now) {
            for _ in 0..missing.min(MAX_PLACED) {
                if let Err(reason) = self.place_one(id, &entity, pass) {
                    blocked = Some(reason);
                    break;
                }
            }
        }
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        if let Some(blocked) = &blocked
            && set.blocked.as_ref() != Some(blocked)
        {
            let note = Note::warn(format!(
                "no replica of {} can be placed: {}",
                entity.name, blocked.reason
            ))
            .endpoint(&set.endpoint);
            pass.effects.notes.push(note);
        }
        set.blocked = blocked;
        self.claim_missing(id, &entity.runtime);
        self.tell_blocked(id, missing, pass);
    }

    /// Places one replica, or says what stands in the way.
    fn place_one(
        &mut self,
        id: &SetId,
        entity: &Arc<ServedEntity>,
        pass: &mut Pass<'_>,
    ) -> Result<(), Blocked> {
        let template = self.settings.templates.get(&entity.runtime);
        let template = template.ok_or_else(|| {
            let runtime = &entity.runtime;
            let problem = "has no template any more: restore its file in runtimes_dirs";
            Blocked::for_good(format!("runtime {runtime} {problem}"))
        })?;
        if self.registry.image(&template.image).is_none() {
            let image = &template.image;
            // A registry that has not answered yet still may.
            let asked = image.registry().is_some() && !self.image_problems.contains_key(image);
            return Err(Blocked {
                reason: self.why_missing(image),
                for_good: !asked,
            });
        }
        let template = Arc::new(template.clone());
        let model = self.registry.model(&entity.model, entity.model_version);
        let model_size_bytes = model.map_or(0, |model| model.size_bytes);
        let need = self.need_of(entity, model_size_bytes);
        let set = self.sets.get(id).ok_or_else(|| Blocked {
            reason: "its set is gone".into(),
            for_good: false,
        })?;
        let candidates: Vec<Candidate> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.takes_part())
            .map(|(name, node)| self.candidate(name, node, set, &need, entity, pass.now))
            .collect();
        let node = place(&need, &candidates).map_err(|no_room| Blocked {
            reason: no_room.to_string(),
            for_good: no_room.for_good,
        })?;
        let replica = Replica {
            id: self.fresh_id(pass),
            set: id.clone(),
            endpoint: set.endpoint.clone(),
            node: node.clone(),
            entity: entity.clone(),
            template,
            model_size_bytes,
            placed_at: Some(pass.now),
            was_ready: false,
            routed: false,
            stage: Stage::Starting,
            seen: None,
            probed: Probed::nothing(pass.now),
        };
        // A template that has grown since the endpoint was made could make the record too large.
        let record = replica.record().put(&replica.id);
        record.map_err(|too_large| {
            Blocked::for_good(format!("{too_large}: shorten the runtime's template"))
        })?;
        let note = Note::info(format!("replica of {} placed", entity.name))
            .endpoint(&replica.endpoint)
            .replica(&replica.id)
            .node(&node);
        pass.effects.notes.push(note);
        self.unwritten.replicas.insert(replica.id.clone());
        self.insert_replica(replica.clone(), pass.now);
        self.claim(&replica);
        pass.tell(self.placed(&replica));
        Ok(())
    }

    pub(crate) fn need_of(&self, entity: &ServedEntity, model_bytes: u64) -> Need {
        let class = self.settings.workload_types.get(&entity.workload_type);
        Need {
            memory_bytes: entity.resources.memory_bytes,
            cpu_millis: entity.resources.cpu_millis,
            gpus: entity.resources.gpus,
            gpu_memory_bytes: class.map_or(0, |class| class.gpu_memory_bytes),
            model_bytes,
        }
    }

    fn candidate(
        &self,
        name: &NodeName,
        node: &Node,
        set: &ReplicaSet,
        need: &Need,
        entity: &ServedEntity,
        now: MonoTime,
    ) -> Candidate {
        let here = || node.replicas.iter().filter_map(|id| self.replicas.get(id));
        let planned = |amount: fn(&Replica) -> u64| here().map(amount).sum::<u64>();
        let memory = planned(|r| r.entity.resources.memory_bytes);
        let cpu = planned(|r| u64::from(r.entity.resources.cpu_millis));
        let gpus = planned(|r| u64::from(r.entity.resources.gpus));
        let gpus_there = node.gpus_of(need.gpu_memory_bytes);
        let image = self.settings.templates.get(&entity.runtime);
        Candidate {
            node: name.clone(),
            standing: self.standing(node, now),
            memory: Share {
                free: node.capacity.memory_bytes.saturating_sub(memory),
                total: node.capacity.memory_bytes,
            },
            cpu_millis: Share {
                free: narrow(u64::from(node.capacity.cpu_millis).saturating_sub(cpu)),
                total: node.capacity.cpu_millis,
            },
            gpus: Share {
                free: narrow(u64::from(gpus_there).saturating_sub(gpus)),
                total: gpus_there,
            },
            cache_bytes: node.capacity.cache_bytes,
            cache_room_bytes: node.capacity.cache_room_bytes,
            known: node.reported,
            siblings: narrow(
                self.counted(set)
                    .filter(|replica| replica.node == *name)
                    .count() as u64,
            ),
            failed_here: (set.backoff.last.as_ref()).is_some_and(|(node, _)| node == name),
            has_model: node.models.contains(&entity.manifest),
            has_image: image.is_some_and(|template| node.images.contains(&template.image)),
        }
    }

    fn standing(&self, node: &Node, now: MonoTime) -> Standing {
        let lease = self.settings.lease;
        if node.revoked {
            return Standing::Revoked;
        }
        match node.agent_contact(lease, now) {
            Contact::Awaited => return Standing::Awaited,
            Contact::Silent => return Standing::Silent,
            Contact::Fresh if !node.agent_up => return Standing::Silent,
            Contact::Fresh => {}
        }
        match node.gateway_contact(lease, now) {
            Contact::Fresh => Standing::Ready,
            Contact::Awaited if node.gateway.up => Standing::Ready,
            Contact::Awaited | Contact::Silent => Standing::NoGateway,
        }
    }

    /// A set's replicas that are there or coming.
    pub(crate) fn counted<'a>(
        &'a self,
        set: &'a ReplicaSet,
    ) -> impl Iterator<Item = &'a Replica> + use<'a> {
        set.members
            .iter()
            .filter_map(|id| self.replicas.get(id))
            .filter(|replica| replica.counts())
    }

    pub(crate) fn ready_members(&self, set: &ReplicaSet) -> u32 {
        let ready = self.counted(set).filter(|replica| replica.serves());
        u32::try_from(ready.count()).unwrap_or(u32::MAX)
    }

    /// An id that no replica has or had lately.
    fn fresh_id(&self, pass: &mut Pass<'_>) -> ReplicaId {
        loop {
            let id = ReplicaId::from_bits(pass.rng.next_u64());
            let ended = self.endpoints.values().flat_map(|entry| &entry.ended);
            if !self.replicas.contains_key(&id) && ended.into_iter().all(|it| it.id != id) {
                return id;
            }
        }
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
