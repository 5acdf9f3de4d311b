//! Compares all that the plan wants of this node with all that was observed, and says what to do
//! next. Pure; the executor acts, the control loop remembers.
//!
//! Level-triggered: a pass takes no hint about what changed, and is safe to repeat. What is already
//! being worked on is not asked for again. Not here: how many actions may run at once (`executor`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared::ids::{ImageRef, ReplicaId};
use shared::manifest::ManifestId;
use shared::plan::{Plan, PlannedReplica};
use shared::report::{HoldState, ImageStatus, ModelStatus};
use shared::units::MonoTime;

use crate::ledger::ReplicaRecord;
use crate::replica::{
    BootId, ContainerState, LocalFiles, Needs, ReplicaView, Step, StopProgress, Trouble, Verdict,
    Wanted, decide,
};

/// An image that no plan has asked for this long is removed from containerd.
pub const IMAGE_KEPT_FOR: Duration = Duration::from_secs(3600);

/// What the node is and has.
#[derive(Clone, Debug)]
pub struct NodeObserved {
    pub boot: BootId,
    /// Everything that the ledger, containerd or `run_dir` knows.
    pub replicas: BTreeMap<ReplicaId, ReplicaObserved>,
    pub images: BTreeMap<ImageRef, Hold>,
    pub models: BTreeMap<ManifestId, Hold>,
    /// Images of ours in containerd, with the time since when no plan and no container needs them.
    pub unneeded_images: BTreeMap<ImageRef, MonoTime>,
    /// What is being worked on.
    pub busy: BTreeSet<Subject>,
}

#[derive(Clone, Debug)]
pub struct ReplicaObserved {
    /// `None` for leftovers in `run_dir` that nobody remembers.
    pub record: Option<ReplicaRecord>,
    pub container: ContainerState,
    pub local: LocalFiles,
    pub stop: StopProgress,
    pub trouble: Option<Trouble>,
}

impl Default for ReplicaObserved {
    fn default() -> Self {
        Self {
            record: None,
            container: ContainerState::Absent,
            local: LocalFiles::default(),
            stop: StopProgress::NotAsked,
            trouble: None,
        }
    }
}

/// How far the node is with a model or an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    Missing,
    Working { have_bytes: u64, total_bytes: u64 },
    Ready,
    Failed(Trouble),
}

/// What an action works on: one action per subject at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Replica(ReplicaId),
    Image(ImageRef),
    Model(ManifestId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Replica {
        id: ReplicaId,
        step: Step,
    },
    /// Fetch the image's layout, and bring it into containerd, unpacked.
    HoldImage {
        reference: ImageRef,
    },
    /// Fetch the model into the cache.
    HoldModel {
        manifest: ManifestId,
    },
    DropImage {
        reference: ImageRef,
    },
}

impl Action {
    pub fn subject(&self) -> Subject {
        match self {
            Action::Replica { id, .. } => Subject::Replica(id.clone()),
            Action::HoldImage { reference } | Action::DropImage { reference } => {
                Subject::Image(reference.clone())
            }
            Action::HoldModel { manifest } => Subject::Model(*manifest),
        }
    }

    /// A label for metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Replica { step, .. } => step.name(),
            Action::HoldImage { .. } => "hold-image",
            Action::HoldModel { .. } => "hold-model",
            Action::DropImage { .. } => "drop-image",
        }
    }
}

/// One pass: what to do, and what to report.
#[derive(Clone, Debug, PartialEq)]
pub struct Pass {
    /// In the order of their importance: what frees resources first.
    pub actions: Vec<Action>,
    pub replicas: BTreeMap<ReplicaId, Verdict>,
    pub images: Vec<ImageStatus>,
    pub models: Vec<ModelStatus>,
}

pub fn plan(desired: Option<&Plan>, observed: &NodeObserved, now: MonoTime) -> Pass {
    let wanted: BTreeMap<&ReplicaId, &PlannedReplica> = desired
        .iter()
        .flat_map(|plan| &plan.replicas)
        .map(|replica| (&replica.id, replica))
        .collect();
    let (steps, replicas) = replica_steps(desired, &wanted, observed, now);
    let mut actions: Vec<Action> = steps
        .into_iter()
        .map(|(id, step)| Action::Replica { id, step })
        .collect();
    actions.sort_by_key(urgency);
    if let Some(desired) = desired {
        actions.extend(holds(desired, observed, now));
        actions.extend(drops(desired, observed, now));
    }
    actions.retain(|action| !observed.busy.contains(&action.subject()));
    Pass {
        actions,
        replicas,
        images: image_statuses(desired, observed),
        models: model_statuses(desired, observed),
    }
}

fn replica_steps(
    desired: Option<&Plan>,
    wanted: &BTreeMap<&ReplicaId, &PlannedReplica>,
    observed: &NodeObserved,
    now: MonoTime,
) -> (Vec<(ReplicaId, Step)>, BTreeMap<ReplicaId, Verdict>) {
    let known = observed.replicas.keys();
    let ids: BTreeSet<&ReplicaId> = known.chain(wanted.keys().copied()).collect();
    let nothing = ReplicaObserved::default();
    let mut steps = Vec::new();
    let mut verdicts = BTreeMap::new();
    for id in ids {
        let replica = observed.replicas.get(id).unwrap_or(&nothing);
        let wanted = match (desired, wanted.get(id)) {
            (None, _) => Wanted::NoPlan,
            (Some(_), None) => Wanted::No,
            (Some(_), Some(planned)) => Wanted::Yes(needs(planned, observed)),
        };
        let verdict = decide(&view(replica, wanted), &observed.boot, now);
        if let Some(step) = verdict.step.clone() {
            steps.push((id.clone(), step));
        }
        verdicts.insert(id.clone(), verdict);
    }
    (steps, verdicts)
}

fn view(replica: &ReplicaObserved, wanted: Wanted) -> ReplicaView {
    let record = replica.record.as_ref();
    ReplicaView {
        wanted,
        life: record.map_or(crate::replica::Life::New, |record| record.life.clone()),
        container: replica.container.clone(),
        local: replica.local,
        stop: replica.stop,
        grace: Duration::from_secs(record.map_or(0, |r| r.stop_grace_seconds).into()),
        trouble: replica.trouble.clone(),
    }
}

fn needs(replica: &PlannedReplica, observed: &NodeObserved) -> Needs {
    match observed.images.get(&replica.image) {
        Some(Hold::Ready) => {}
        hold => {
            let reason = hold_reason(hold);
            return Needs::Image { reason };
        }
    }
    match observed.models.get(&replica.model) {
        Some(Hold::Ready) => Needs::Nothing,
        hold => Needs::Model {
            reason: hold_reason(hold),
        },
    }
}

fn hold_reason(hold: Option<&Hold>) -> String {
    match hold {
        Some(Hold::Failed(trouble)) => trouble.reason.clone(),
        Some(Hold::Missing | Hold::Working { .. } | Hold::Ready) | None => String::new(),
    }
}

/// Stops come before starts: they free what starts need.
fn urgency(action: &Action) -> u8 {
    match action {
        Action::Replica { step, .. } => match step {
            Step::RecordEnd { .. } | Step::Forget => 0,
            Step::Announce => 1,
            Step::Kill | Step::Signal => 2,
            Step::Remove => 3,
            Step::Start => 4,
        },
        Action::HoldImage { .. } | Action::HoldModel { .. } | Action::DropImage { .. } => 5,
    }
}

/// What replicas wait for comes before what is only to be held, images before models of the same.
fn holds(desired: &Plan, observed: &NodeObserved, now: MonoTime) -> Vec<Action> {
    let due = |hold: Option<&Hold>| match hold {
        None | Some(Hold::Missing) => true,
        Some(Hold::Failed(trouble)) => now >= trouble.retry_at,
        Some(Hold::Working { .. } | Hold::Ready) => false,
    };
    let for_replicas_image: BTreeSet<_> = desired.replicas.iter().map(|r| &r.image).collect();
    let for_replicas_model: BTreeSet<_> = desired.replicas.iter().map(|r| &r.model).collect();
    let images = desired.images.iter().map(|image| &image.reference);
    let models = desired.models.iter().map(|model| &model.manifest);
    let mut actions: Vec<(bool, Action)> = images
        .filter(|reference| due(observed.images.get(*reference)))
        .map(|reference| {
            let action = Action::HoldImage {
                reference: reference.clone(),
            };
            (!for_replicas_image.contains(reference), action)
        })
        .chain(
            models
                .filter(|manifest| due(observed.models.get(*manifest)))
                .map(|manifest| {
                    let action = Action::HoldModel {
                        manifest: *manifest,
                    };
                    (!for_replicas_model.contains(manifest), action)
                }),
        )
        .collect();
    actions.sort_by_key(|(later, _)| *later);
    actions.into_iter().map(|(_, action)| action).collect()
}

fn drops(desired: &Plan, observed: &NodeObserved, now: MonoTime) -> Vec<Action> {
    let planned: BTreeSet<&ImageRef> = desired.images.iter().map(|i| &i.reference).collect();
    observed
        .unneeded_images
        .iter()
        .filter(|(reference, _)| !planned.contains(reference))
        .filter(|(_, since)| now.saturating_since(**since) >= IMAGE_KEPT_FOR)
        .map(|(reference, _)| Action::DropImage {
            reference: reference.clone(),
        })
        .collect()
}

fn status(hold: Option<&Hold>, total_bytes: u64) -> HoldState {
    match hold {
        None | Some(Hold::Missing) => HoldState::Fetching {
            have_bytes: 0,
            total_bytes,
        },
        Some(Hold::Working {
            have_bytes,
            total_bytes,
        }) => HoldState::Fetching {
            have_bytes: *have_bytes,
            total_bytes: *total_bytes,
        },
        Some(Hold::Ready) => HoldState::Ready,
        Some(Hold::Failed(trouble)) => HoldState::Failed {
            reason: trouble.reason.clone(),
        },
    }
}

fn image_statuses(desired: Option<&Plan>, observed: &NodeObserved) -> Vec<ImageStatus> {
    let images = desired.iter().flat_map(|plan| &plan.images);
    images
        .map(|image| {
            let layers = image.layers.iter().map(|layer| layer.blob.size_bytes);
            let total = layers.fold(0u64, u64::saturating_add);
            ImageStatus {
                reference: image.reference.clone(),
                state: status(observed.images.get(&image.reference), total),
            }
        })
        .collect()
}

fn model_statuses(desired: Option<&Plan>, observed: &NodeObserved) -> Vec<ModelStatus> {
    let models = desired.iter().flat_map(|plan| &plan.models);
    models
        .map(|model| ModelStatus {
            manifest: model.manifest,
            state: status(observed.models.get(&model.manifest), model.size_bytes),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{image_ref, model_id, plan_with, planned_replica};
    use crate::replica::Life;
    use proptest::prelude::*;
    use shared::report::{ReplicaExit, ReplicaPhase};

    fn node() -> NodeObserved {
        NodeObserved {
            boot: BootId("b".into()),
            replicas: BTreeMap::new(),
            images: BTreeMap::from([(image_ref(), Hold::Ready)]),
            models: BTreeMap::from([(model_id(), Hold::Ready)]),
            unneeded_images: BTreeMap::new(),
            busy: BTreeSet::new(),
        }
    }

    fn observed(n: u64, container: ContainerState, life: Life) -> (ReplicaId, ReplicaObserved) {
        let mut record = ReplicaRecord::new(&planned_replica(n), 5000 + n as u32);
        record.life = life;
        let replica = ReplicaObserved {
            record: Some(record),
            container,
            local: LocalFiles {
                folder: true,
                announced: true,
                network: false,
            },
            ..ReplicaObserved::default()
        };
        (ReplicaId::from_bits(n), replica)
    }

    fn running(n: u64) -> (ReplicaId, ReplicaObserved) {
        let boot = BootId("b".into());
        observed(n, ContainerState::Running, Life::Started { boot })
    }

    fn step(n: u64, step: Step) -> Action {
        let id = ReplicaId::from_bits(n);
        Action::Replica { id, step }
    }

    #[test]
    fn a_node_that_matches_its_plan_has_nothing_to_do() {
        let mut node = node();
        node.replicas.extend([running(1), running(2)]);
        let desired = plan_with(1, 1, vec![planned_replica(1), planned_replica(2)]);
        let pass = plan(Some(&desired), &node, MonoTime::ZERO);
        assert_eq!(pass.actions, vec![]);
        assert!(
            pass.replicas
                .values()
                .all(|v| v.phase == ReplicaPhase::Running)
        );
        assert_eq!(pass.images[0].state, HoldState::Ready);
        assert_eq!(pass.models[0].state, HoldState::Ready);
    }

    #[test]
    fn the_difference_is_made_up_stops_before_starts() {
        let mut node = node();
        node.replicas.extend([running(1), running(9)]);
        let desired = plan_with(1, 1, vec![planned_replica(1), planned_replica(2)]);
        let pass = plan(Some(&desired), &node, MonoTime::ZERO);
        assert_eq!(
            pass.actions,
            vec![step(9, Step::Signal), step(2, Step::Start)]
        );
    }

    #[test]
    fn what_is_being_worked_on_is_not_asked_for_again() {
        let mut node = node();
        node.busy.insert(Subject::Replica(ReplicaId::from_bits(2)));
        let desired = plan_with(1, 1, vec![planned_replica(2)]);
        assert_eq!(plan(Some(&desired), &node, MonoTime::ZERO).actions, vec![]);
    }

    #[test]
    fn image_and_model_are_fetched_before_the_start() {
        let mut node = node();
        node.images.clear();
        node.models.clear();
        let desired = plan_with(1, 1, vec![planned_replica(1)]);
        let pass = plan(Some(&desired), &node, MonoTime::ZERO);
        assert_eq!(
            pass.actions,
            vec![
                Action::HoldImage {
                    reference: image_ref()
                },
                Action::HoldModel {
                    manifest: model_id()
                },
            ]
        );
        let phase = pass.replicas[&ReplicaId::from_bits(1)].phase;
        assert_eq!(phase, ReplicaPhase::PullingImage);
    }

    #[test]
    fn a_failed_fetch_says_why_and_is_tried_again_when_its_time_has_come() {
        let mut node = node();
        let trouble = Trouble::after(None, "disk /models is full".into(), MonoTime::ZERO);
        node.models.insert(model_id(), Hold::Failed(trouble));
        let desired = plan_with(1, 1, vec![planned_replica(1)]);
        let early = plan(Some(&desired), &node, MonoTime::ZERO);
        assert_eq!(early.actions, vec![]);
        let replica = &early.replicas[&ReplicaId::from_bits(1)];
        assert_eq!(replica.phase, ReplicaPhase::FetchingModel);
        assert_eq!(replica.reason, "disk /models is full");
        let later = plan(Some(&desired), &node, MonoTime::from_secs(1));
        let manifest = model_id();
        assert_eq!(later.actions, vec![Action::HoldModel { manifest }]);
    }

    #[test]
    fn leftovers_that_nobody_remembers_are_removed_but_only_under_a_plan() {
        let mut node = node();
        let leftover = ReplicaObserved {
            local: LocalFiles {
                folder: true,
                announced: false,
                network: false,
            },
            ..ReplicaObserved::default()
        };
        node.replicas.insert(ReplicaId::from_bits(7), leftover);
        assert_eq!(plan(None, &node, MonoTime::ZERO).actions, vec![]);
        let desired = plan_with(1, 1, vec![]);
        let pass = plan(Some(&desired), &node, MonoTime::ZERO);
        assert_eq!(pass.actions, vec![step(7, Step::Remove)]);
    }

    #[test]
    fn an_image_goes_once_no_plan_has_asked_for_it_for_an_hour() {
        let mut node = node();
        let old = ImageRef::parse("old:1").expect("valid");
        node.unneeded_images
            .insert(old.clone(), MonoTime::from_secs(10));
        let desired = plan_with(1, 1, vec![]);
        let at = |secs| plan(Some(&desired), &node, MonoTime::from_secs(secs)).actions;
        assert_eq!(at(3609), vec![]);
        assert_eq!(at(3610), vec![Action::DropImage { reference: old }]);
    }

    fn any_node() -> impl Strategy<Value = NodeObserved> {
        let exit = ReplicaExit {
            code: 1,
            out_of_memory: false,
        };
        let container = prop_oneof![
            Just(ContainerState::Absent),
            Just(ContainerState::NoTask),
            Just(ContainerState::Created),
            Just(ContainerState::Running),
            Just(ContainerState::Exited(exit)),
            Just(ContainerState::Unknown),
        ];
        let life = prop_oneof![
            Just(Life::New),
            Just(Life::Started {
                boot: BootId("b".into())
            }),
            Just(Life::Ended {
                reason: "x".into(),
                exit: None
            }),
        ];
        proptest::collection::vec((0u64..8, container, life), 0..8).prop_map(|replicas| {
            let mut node = node();
            for (n, container, life) in replicas {
                node.replicas.extend([observed(n, container, life)]);
            }
            node
        })
    }

    proptest! {
        #[test]
        fn no_subject_gets_two_actions_and_every_replica_a_verdict(
            node in any_node(), wanted in proptest::collection::btree_set(0u64..8, 0..8),
        ) {
            let replicas: Vec<_> = wanted.iter().copied().map(planned_replica).collect();
            let desired = plan_with(1, 1, replicas);
            let pass = plan(Some(&desired), &node, MonoTime::from_secs(100));
            let subjects: BTreeSet<_> = pass.actions.iter().map(Action::subject).collect();
            prop_assert_eq!(subjects.len(), pass.actions.len());
            for id in wanted.into_iter().map(ReplicaId::from_bits).chain(node.replicas.keys().cloned()) {
                prop_assert!(pass.replicas.contains_key(&id));
            }
        }

        #[test]
        fn without_a_plan_there_is_nothing_to_do(node in any_node()) {
            prop_assert_eq!(plan(None, &node, MonoTime::from_secs(100)).actions, vec![]);
        }

        #[test]
        fn a_plan_that_is_carried_out_is_reached(
            node in any_node(), wanted in proptest::collection::btree_set(0u64..8, 0..8),
        ) {
            let replicas: Vec<_> = wanted.iter().copied().map(planned_replica).collect();
            let desired = plan_with(1, 1, replicas);
            let mut node = node;
            for replica in node.replicas.values_mut() {
                if replica.container == ContainerState::Unknown {
                    replica.container = ContainerState::Running; // the look that follows
                }
            }
            for second in 0..60 {
                let now = MonoTime::from_secs(second);
                for action in plan(Some(&desired), &node, now).actions {
                    carry_out(&mut node, action, now);
                }
            }
            let settled = plan(Some(&desired), &node, MonoTime::from_secs(60));
            prop_assert_eq!(settled.actions, vec![]);
            for (id, verdict) in settled.replicas {
                let wanted = desired.replicas.iter().any(|r| r.id == id);
                prop_assert!(wanted, "{} is still there", id);
                let good = matches!(verdict.phase, ReplicaPhase::Running | ReplicaPhase::Failed);
                prop_assert!(good, "{} is {:?}", id, verdict);
            }
        }
    }

    /// A world in which every step succeeds at once.
    fn carry_out(node: &mut NodeObserved, action: Action, now: MonoTime) {
        let Action::Replica { id, step } = action else {
            panic!("images and models are there: {action:?}");
        };
        let replica = node.replicas.entry(id.clone()).or_default();
        let record = replica
            .record
            .get_or_insert_with(|| ReplicaRecord::new(&planned_replica(0), 5000));
        match step {
            Step::Start => {
                replica.container = ContainerState::Running;
                replica.local = LocalFiles {
                    folder: true,
                    announced: true,
                    network: false,
                };
                record.life = Life::Started {
                    boot: BootId("b".into()),
                };
            }
            Step::Announce => replica.local.announced = true,
            Step::RecordEnd { reason, .. } => record.life = Life::Ended { reason, exit: None },
            Step::Signal => replica.stop = StopProgress::Asked { at: now },
            Step::Kill => {
                replica.container = ContainerState::Exited(ReplicaExit {
                    code: 137,
                    out_of_memory: false,
                });
            }
            Step::Remove => {
                replica.container = ContainerState::Absent;
                replica.local = LocalFiles::default();
            }
            Step::Forget => {
                node.replicas.remove(&id);
            }
        }
    }
}
