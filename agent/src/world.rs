//! What the agent remembers between passes, beside the ledger: the last look, failures, stops that
//! were asked for, since when replicas are in their phases. Lost at a restart without harm.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared::ids::{ImageRef, ReplicaId};
use shared::manifest::ManifestId;
use shared::plan::Plan;
use shared::report::{ReplicaPhase, ReplicaStatus};
use shared::units::MonoTime;

use crate::executor::{Done, Outcome, WorkKind};
use crate::ledger::Ledger;
use crate::look::Look;
use crate::reconcile::{Hold, NodeObserved, Pass, ReplicaObserved, Subject};
use crate::replica::{BootId, ContainerState, Life, Step, StopProgress, Trouble, Verdict};

/// A replica that is gone is reported as stopped for this long, so that no report that carries it is
/// the only one.
const DEPARTED_FOR: Duration = Duration::from_secs(30);
/// Before a step without an answer is tried again.
const UNKNOWN_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct World {
    look: Look,
    stops: BTreeMap<ReplicaId, MonoTime>,
    troubles: BTreeMap<Subject, Trouble>,
    /// Replicas of which the kernel killed a process for want of memory.
    out_of_memory: BTreeSet<ReplicaId>,
    unneeded_images: BTreeMap<ImageRef, MonoTime>,
    phases: BTreeMap<ReplicaId, (ReplicaPhase, MonoTime)>,
    departed: BTreeMap<ReplicaId, (ReplicaStatus, MonoTime)>,
    /// A step of theirs gave no answer, and no look has succeeded since.
    unknown: BTreeSet<ReplicaId>,
}

impl World {
    /// Takes a whole look in: adopts what the ledger does not know, and notes what runs. Whether the
    /// ledger changed.
    pub fn looked(
        &mut self,
        look: Look,
        ledger: &mut Ledger,
        boot: &BootId,
        now: MonoTime,
    ) -> bool {
        let before = ledger.clone();
        for (id, (record, state)) in &look.containers {
            ledger.adopt(id.clone(), record.clone());
            let ended = matches!(
                ledger.replicas().get(id).map(|record| &record.life),
                Some(Life::Ended { .. })
            );
            if *state == ContainerState::Running && !ended {
                let boot = boot.clone();
                ledger.set_life(id, Life::Started { boot });
            }
        }
        self.note_unneeded_images(&look, ledger, now);
        self.look = look;
        self.unknown.clear();
        self.forget_what_nobody_names(ledger);
        *ledger != before
    }

    fn note_unneeded_images(&mut self, look: &Look, ledger: &Ledger, now: MonoTime) {
        let planned = ledger.plan().into_iter().flat_map(|plan| &plan.images);
        let used = ledger.replicas().values().map(|record| &record.image);
        let needed: BTreeSet<&ImageRef> = planned.map(|i| &i.reference).chain(used).collect();
        self.unneeded_images = look
            .images_ours
            .iter()
            .filter(|reference| !needed.contains(reference))
            .map(|reference| {
                let since = self.unneeded_images.get(reference).copied();
                (reference.clone(), since.unwrap_or(now))
            })
            .collect();
    }

    /// Troubles of images and models that no plan has any more.
    fn forget_what_nobody_names(&mut self, ledger: &Ledger) {
        let plan = ledger.plan();
        self.troubles.retain(|subject, _| match subject {
            Subject::Replica(_) => true,
            Subject::Image(reference) => plan
                .into_iter()
                .flat_map(|plan| &plan.images)
                .any(|image| image.reference == *reference),
            Subject::Model(manifest) => plan
                .into_iter()
                .flat_map(|plan| &plan.models)
                .any(|model| model.manifest == *manifest),
        });
    }

    /// Whether it is one of ours: other instances' replicas live in the same namespace.
    pub fn out_of_memory(&mut self, id: &ReplicaId, ledger: &Ledger) -> bool {
        let ours = ledger.replicas().contains_key(id) || self.look.containers.contains_key(id);
        if ours {
            self.out_of_memory.insert(id.clone());
        }
        ours
    }

    /// Containers that carry our label and could not be read at the last look.
    pub fn unreadable(&self) -> &BTreeSet<String> {
        &self.look.unreadable
    }

    pub fn was_out_of_memory(&self, id: &ReplicaId) -> bool {
        self.out_of_memory.contains(id)
    }

    pub fn done(&mut self, done: &Done, now: MonoTime) {
        let before = self.troubles.remove(&done.subject);
        if let (WorkKind::DropImage, Subject::Image(reference)) = (done.kind, &done.subject) {
            // Where it could not be dropped, its time begins anew: nothing waits for that room.
            self.unneeded_images.insert(reference.clone(), now);
            return;
        }
        match &done.outcome {
            Outcome::Done => {
                if let (WorkKind::Signal, Subject::Replica(id)) = (done.kind, &done.subject) {
                    self.stops.insert(id.clone(), now);
                }
            }
            Outcome::Failed { reason } => {
                let trouble = Trouble::after(before.as_ref(), reason.clone(), now);
                self.troubles.insert(done.subject.clone(), trouble);
                if let (WorkKind::Signal, Subject::Replica(id)) = (done.kind, &done.subject) {
                    // What cannot be asked is not left running for ever: it is killed after its grace.
                    self.stops.entry(id.clone()).or_insert(now);
                }
            }
            Outcome::Unknown { reason } => {
                if let Subject::Replica(id) = &done.subject {
                    self.unknown.insert(id.clone());
                }
                // No attempt that failed: it may have succeeded.
                let trouble = Trouble {
                    reason: reason.clone(),
                    attempts: before.map_or(0, |trouble| trouble.attempts),
                    retry_at: now + UNKNOWN_WAIT,
                };
                self.troubles.insert(done.subject.clone(), trouble);
            }
        }
    }

    /// Notes a failure that no work came of.
    pub fn trouble(&mut self, subject: Subject, next: impl FnOnce(Option<&Trouble>) -> Trouble) {
        let trouble = next(self.troubles.get(&subject));
        self.troubles.insert(subject, trouble);
    }

    /// A replica's end was recorded: what kept it from starting is no trouble of its removal.
    pub fn end_recorded(&mut self, id: &ReplicaId) {
        self.troubles.remove(&Subject::Replica(id.clone()));
    }

    /// Nothing is left of a replica: it is reported as stopped for a while yet.
    pub fn forget(&mut self, id: &ReplicaId, last: Option<ReplicaStatus>, now: MonoTime) {
        self.stops.remove(id);
        self.out_of_memory.remove(id);
        self.phases.remove(id);
        self.troubles.remove(&Subject::Replica(id.clone()));
        if let Some(last) = last {
            let stopped = ReplicaStatus {
                phase: ReplicaPhase::Stopped,
                reason: String::new(),
                since: Duration::ZERO,
                sample: None,
                ..last
            };
            self.departed.insert(id.clone(), (stopped, now));
        }
    }

    /// All that the next pass is decided from. `view` says whether a model is whole, `progress` how
    /// far a fetch is.
    pub fn observed(
        &self,
        ledger: &Ledger,
        boot: &BootId,
        busy: BTreeSet<Subject>,
        view: impl Fn(&ManifestId) -> bool,
        progress: impl Fn(&Subject) -> Option<(u64, u64)>,
    ) -> NodeObserved {
        let plan = ledger.plan();
        let images = plan.into_iter().flat_map(|plan| &plan.images).map(|image| {
            let subject = Subject::Image(image.reference.clone());
            let ready = self.look.images_ready.contains(&image.reference);
            let hold = self.hold(&subject, ready, progress(&subject));
            (image.reference.clone(), hold)
        });
        let models = plan.into_iter().flat_map(|plan| &plan.models).map(|model| {
            let subject = Subject::Model(model.manifest);
            let hold = self.hold(&subject, view(&model.manifest), progress(&subject));
            (model.manifest, hold)
        });
        NodeObserved {
            boot: boot.clone(),
            images: images.collect(),
            models: models.collect(),
            replicas: self.replicas(ledger),
            unneeded_images: self.unneeded_images.clone(),
            busy,
        }
    }

    fn replicas(&self, ledger: &Ledger) -> BTreeMap<ReplicaId, ReplicaObserved> {
        let ids: BTreeSet<&ReplicaId> = ledger
            .replicas()
            .keys()
            .chain(self.look.containers.keys())
            .chain(self.look.local.keys())
            .collect();
        ids.into_iter()
            .map(|id| (id.clone(), self.replica(id, ledger)))
            .collect()
    }

    fn replica(&self, id: &ReplicaId, ledger: &Ledger) -> ReplicaObserved {
        let seen = self.look.containers.get(id).map(|(_, state)| state.clone());
        let container = match seen {
            _ if self.unknown.contains(id) => ContainerState::Unknown,
            Some(ContainerState::Exited(mut exit)) => {
                exit.out_of_memory |= self.out_of_memory.contains(id);
                ContainerState::Exited(exit)
            }
            Some(state) => state,
            None => ContainerState::Absent,
        };
        let stop = self
            .stops
            .get(id)
            .map_or(StopProgress::NotAsked, |&at| StopProgress::Asked { at });
        ReplicaObserved {
            record: ledger.replicas().get(id).cloned(),
            container,
            local: self.look.local.get(id).copied().unwrap_or_default(),
            stop,
            trouble: self.troubles.get(&Subject::Replica(id.clone())).cloned(),
        }
    }

    fn hold(&self, subject: &Subject, ready: bool, progress: Option<(u64, u64)>) -> Hold {
        match (ready, progress, self.troubles.get(subject)) {
            (true, _, _) => Hold::Ready,
            (false, Some((have_bytes, total_bytes)), _) => Hold::Working {
                have_bytes,
                total_bytes,
            },
            (false, None, Some(trouble)) => Hold::Failed(trouble.clone()),
            (false, None, None) => Hold::Missing,
        }
    }

    /// The replicas' part of a report.
    pub fn statuses(&mut self, pass: &Pass, ledger: &Ledger, now: MonoTime) -> Vec<ReplicaStatus> {
        self.phases.retain(|id, _| pass.replicas.contains_key(id));
        self.departed
            .retain(|_, (_, since)| now.saturating_since(*since) < DEPARTED_FOR);
        let mut statuses = Vec::with_capacity(pass.replicas.len());
        for (id, verdict) in &pass.replicas {
            let (phase, since) = self.phase(id, verdict, now);
            let record = ledger.replicas().get(id);
            let exit = match record.map(|record| &record.life) {
                Some(Life::Ended { exit, .. }) => exit.map(Into::into),
                Some(Life::New | Life::Started { .. }) | None => None,
            };
            // Leftovers that nobody remembers belong to no endpoint; they go without a word.
            if let Some((endpoint, entity)) = names(id, ledger) {
                statuses.push(ReplicaStatus {
                    id: id.clone(),
                    endpoint,
                    entity,
                    phase,
                    reason: verdict.reason.clone(),
                    since: now.saturating_since(since),
                    exit,
                    sample: None,
                });
            }
        }
        let departed = self.departed.iter();
        statuses.extend(
            departed
                .filter(|(id, _)| !pass.replicas.contains_key(id))
                .map(|(_, (status, since))| ReplicaStatus {
                    since: now.saturating_since(*since),
                    ..status.clone()
                }),
        );
        statuses
    }

    /// The phase to report, and since when it is that. An end is not reported before it is recorded:
    /// how it ended is not known in full until then.
    fn phase(
        &mut self,
        id: &ReplicaId,
        verdict: &Verdict,
        now: MonoTime,
    ) -> (ReplicaPhase, MonoTime) {
        let before = self.phases.get(id).copied();
        let recorded = !matches!(verdict.step, Some(Step::RecordEnd { .. }));
        let phase = match before {
            _ if recorded => verdict.phase,
            Some((phase, _)) => phase,
            None => ReplicaPhase::Creating,
        };
        let since = match before {
            Some((same, since)) if same == phase => since,
            Some(_) | None => now,
        };
        self.phases.insert(id.clone(), (phase, since));
        (phase, since)
    }

    /// Containers that run now.
    pub fn running(&self) -> Vec<ReplicaId> {
        let containers = self.look.containers.iter();
        containers
            .filter(|(_, (_, state))| *state == ContainerState::Running)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Models that replicas have mounted or are about to.
    pub fn models_in_use(&self, ledger: &Ledger) -> BTreeSet<ManifestId> {
        let planned = ledger
            .plan()
            .into_iter()
            .flat_map(|plan: &Plan| &plan.models);
        let used = ledger.replicas().values().map(|record| record.model);
        planned.map(|model| model.manifest).chain(used).collect()
    }
}

fn names(
    id: &ReplicaId,
    ledger: &Ledger,
) -> Option<(shared::ids::EndpointName, shared::ids::EntityName)> {
    if let Some(record) = ledger.replicas().get(id) {
        return Some((record.endpoint.clone(), record.entity.clone()));
    }
    let planned = ledger.plan()?.replicas.iter().find(|r| r.id == *id)?;
    Some((planned.endpoint.clone(), planned.entity.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{image_ref, model_id, plan_with, planned_replica};
    use crate::ledger::{ReplicaRecord, UidRange};
    use crate::reconcile;
    use shared::ids::NodeName;
    use shared::report::ReplicaExit;

    const UIDS: UidRange = UidRange {
        start: 5000,
        count: 10,
    };

    fn boot() -> BootId {
        BootId("b".into())
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        let node = NodeName::parse("n1").expect("valid");
        let plan = plan_with(1, 1, vec![planned_replica(1)]);
        ledger.offer(&node, plan).expect("taken");
        ledger.admit(&planned_replica(1), UIDS).expect("a uid");
        ledger
    }

    fn look_of(state: ContainerState) -> Look {
        let replica = planned_replica(1);
        let record = ReplicaRecord::new(&replica, 5000);
        Look {
            containers: BTreeMap::from([(replica.id, (record, state))]),
            images_ready: BTreeSet::from([image_ref()]),
            ..Look::default()
        }
    }

    fn pass(world: &World, ledger: &Ledger, now: MonoTime) -> Pass {
        let observed = world.observed(ledger, &boot(), BTreeSet::new(), |_| true, |_| None);
        reconcile::plan(ledger.plan(), &observed, now)
    }

    fn done(kind: WorkKind, outcome: Outcome) -> Done {
        Done {
            subject: Subject::Replica(planned_replica(1).id),
            kind,
            outcome,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn a_container_that_the_ledger_does_not_know_is_adopted() {
        let (mut world, mut ledger) = (World::default(), Ledger::default());
        let look = look_of(ContainerState::Running);
        assert!(world.looked(look.clone(), &mut ledger, &boot(), MonoTime::ZERO));
        let record = &ledger.replicas()[&planned_replica(1).id];
        assert_eq!(
            (record.uid, &record.life),
            (5000, &Life::Started { boot: boot() })
        );
        assert!(!world.looked(look, &mut ledger, &boot(), MonoTime::ZERO));
    }

    #[test]
    fn a_step_without_an_answer_makes_its_replica_unknown_until_the_next_look() {
        let (mut world, mut ledger) = (World::default(), ledger());
        world.looked(
            look_of(ContainerState::Running),
            &mut ledger,
            &boot(),
            MonoTime::ZERO,
        );
        let reason = "no answer".to_owned();
        world.done(
            &done(WorkKind::Kill, Outcome::Unknown { reason }),
            MonoTime::ZERO,
        );
        let statuses = |world: &mut World, ledger: &Ledger| {
            let pass = pass(world, ledger, MonoTime::ZERO);
            world.statuses(&pass, ledger, MonoTime::ZERO)[0].phase
        };
        assert_eq!(statuses(&mut world, &ledger), ReplicaPhase::Unknown);
        world.looked(
            look_of(ContainerState::Running),
            &mut ledger,
            &boot(),
            MonoTime::ZERO,
        );
        assert_eq!(statuses(&mut world, &ledger), ReplicaPhase::Running);
    }

    #[test]
    fn a_replica_that_cannot_be_asked_to_stop_is_killed_after_its_grace() {
        let (mut world, mut ledger) = (World::default(), ledger());
        let now = MonoTime::ZERO;
        world.looked(look_of(ContainerState::Running), &mut ledger, &boot(), now);
        let node = NodeName::parse("n1").expect("valid");
        ledger.offer(&node, plan_with(1, 2, vec![])).expect("taken");
        let reason = "no such signal".to_owned();
        world.done(&done(WorkKind::Signal, Outcome::Failed { reason }), now);
        let id = planned_replica(1).id;
        let step = |world: &World, secs| {
            let pass = pass(world, &ledger, MonoTime::from_secs(secs));
            pass.replicas[&id].step.clone()
        };
        assert_eq!(step(&world, 19), None);
        assert_eq!(step(&world, 20), Some(Step::Kill));
    }

    #[test]
    fn an_image_that_could_not_be_dropped_is_left_for_another_hour() {
        let (mut world, mut ledger) = (World::default(), Ledger::default());
        let node = NodeName::parse("n1").expect("valid");
        let mut empty = plan_with(1, 1, vec![]);
        empty.images.clear();
        ledger.offer(&node, empty).expect("taken");
        let look = Look {
            images_ours: BTreeSet::from([image_ref()]),
            ..Look::default()
        };
        world.looked(look.clone(), &mut ledger, &boot(), MonoTime::ZERO);
        let hour = reconcile::IMAGE_KEPT_FOR.as_secs();
        let actions = |world: &World, secs| pass(world, &ledger, MonoTime::from_secs(secs)).actions;
        assert_eq!(actions(&world, hour).len(), 1);
        let reason = "refused".to_owned();
        let failed = Done {
            subject: Subject::Image(image_ref()),
            ..done(WorkKind::DropImage, Outcome::Failed { reason })
        };
        world.done(&failed, MonoTime::from_secs(hour));
        let mut again = ledger.clone();
        world.looked(look, &mut again, &boot(), MonoTime::from_secs(hour));
        assert_eq!(actions(&world, 2 * hour - 1), vec![]);
        assert_eq!(actions(&world, 2 * hour).len(), 1);
    }

    #[test]
    fn the_memory_troubles_of_other_instances_are_not_ours() {
        let (mut world, ledger) = (World::default(), ledger());
        assert!(!world.out_of_memory(&ReplicaId::from_bits(9), &ledger));
        assert!(world.out_of_memory(&planned_replica(1).id, &ledger));
    }

    #[test]
    fn an_end_is_reported_once_it_is_recorded_with_how_it_ended() {
        let (mut world, mut ledger) = (World::default(), ledger());
        let now = MonoTime::ZERO;
        world.looked(look_of(ContainerState::Running), &mut ledger, &boot(), now);
        let running = pass(&world, &ledger, now);
        world.statuses(&running, &ledger, now);
        let exit = ReplicaExit {
            code: 42,
            out_of_memory: false,
        };
        let look = look_of(ContainerState::Exited(exit.clone()));
        world.looked(look, &mut ledger, &boot(), now);
        let unrecorded = pass(&world, &ledger, now);
        let status = world.statuses(&unrecorded, &ledger, now);
        assert_eq!(status[0].phase, ReplicaPhase::Running);
        let id = planned_replica(1).id;
        let life = Life::Ended {
            reason: "exited".into(),
            exit: Some((&exit).into()),
        };
        ledger.set_life(&id, life);
        let recorded = pass(&world, &ledger, now);
        let status = world.statuses(&recorded, &ledger, now);
        assert_eq!(
            (status[0].phase, status[0].exit.clone()),
            (ReplicaPhase::Failed, Some(exit))
        );
    }

    #[test]
    fn a_replica_that_is_gone_is_reported_as_stopped_for_a_while() {
        let (mut world, ledger) = (World::default(), ledger());
        let now = MonoTime::ZERO;
        let pass = pass(&world, &ledger, now);
        let last = world.statuses(&pass, &ledger, now).pop();
        let id = planned_replica(1).id;
        world.forget(&id, last, now);
        let empty = Ledger::default();
        let nothing = reconcile::plan(
            None,
            &world.observed(&empty, &boot(), BTreeSet::new(), |_| true, |_| None),
            now,
        );
        let at = |world: &mut World, secs| {
            let now = MonoTime::from_secs(secs);
            world.statuses(&nothing, &empty, now)
        };
        let reported = at(&mut world, 29);
        assert_eq!(
            (reported[0].phase, reported[0].since),
            (ReplicaPhase::Stopped, Duration::from_secs(29))
        );
        assert_eq!(at(&mut world, 30), vec![]);
    }

    #[test]
    fn models_of_the_plan_and_of_what_still_runs_are_in_use() {
        let mut ledger = ledger();
        let node = NodeName::parse("n1").expect("valid");
        let mut later = plan_with(1, 2, vec![]);
        later.models.clear();
        ledger.offer(&node, later).expect("taken");
        let in_use = World::default().models_in_use(&ledger);
        assert_eq!(in_use, BTreeSet::from([model_id()]));
    }
}
