//! A replica set's two axes: how many replicas, and how many requests each of them takes at once.

use std::collections::BTreeMap;
use std::time::Duration;

use apa::sample::{HardwareClass, Sample};
use apa::{Autoscaler, ClassTarget, Orders, Policy};
use shared::api::autoscaler::TargetOrigin;
use shared::ids::ReplicaId;
use shared::spec::{DEFAULT_TARGET_CONCURRENCY, ServedEntity};
use shared::units::MonoTime;

use crate::settings::Settings;

#[derive(Clone, Debug, Default)]
pub(crate) struct Axes {
    /// `None` until the set serves: what is only rolled out decides nothing yet.
    scaler: Option<Autoscaler>,
    desired: u32,
    /// By hardware class, that of most replicas first; empty until the axes run.
    targets: Vec<ClassTarget>,
    explorers: BTreeMap<HardwareClass, ReplicaId>,
    /// What others have learned, for the first guess.
    prior: Option<u32>,
}

impl Axes {
    pub(crate) fn desired(&self) -> u32 {
        self.desired
    }

    /// So many are wanted until the axes run.
    pub(crate) fn expect(&mut self, desired: u32) {
        self.desired = desired;
    }

    pub(crate) fn scaler(&self) -> Option<&Autoscaler> {
        self.scaler.as_ref()
    }

    pub(crate) fn prior(&self) -> Option<u32> {
        self.prior
    }

    pub(crate) fn targets(&self) -> &[ClassTarget] {
        &self.targets
    }

    /// What most replicas take; `None` until the axes run.
    pub(crate) fn target(&self) -> Option<u32> {
        self.targets.first().map(|class| class.target_concurrency)
    }

    /// What was measured for most replicas: a guess is nothing to build on.
    pub(crate) fn learned(&self) -> Option<u32> {
        let main = self.targets.first()?;
        (!main.guess).then_some(main.target_concurrency)
    }

    /// What a replica of a class takes. A class that is not known yet takes what most do.
    pub(crate) fn target_of(&self, class: Option<&HardwareClass>) -> Option<u32> {
        let class = class.and_then(|class| self.targets.iter().find(|it| it.class == *class));
        class
            .or(self.targets.first())
            .map(|it| it.target_concurrency)
    }

    pub(crate) fn explores(&self, class: &HardwareClass, replica: &ReplicaId) -> bool {
        self.explorers.get(class) == Some(replica)
    }

    /// Whether every replica takes the same.
    pub(crate) fn uniform(&self) -> bool {
        self.targets.len() <= 1 && self.explorers.is_empty()
    }

    /// What one replica of a class takes to explore, where it does.
    pub(crate) fn exploring(&self, class: &HardwareClass, replica: &ReplicaId) -> Option<u32> {
        let explore = self.targets.iter().find(|it| it.class == *class)?.explore;
        explore.filter(|_| self.explores(class, replica))
    }

    /// Lets the first guess be what others have learned.
    pub(crate) fn guess_from(&mut self, prior: Option<u32>) {
        self.prior = prior;
    }

    /// The axes begin, with `desired` replicas there or coming; `kept` is what an earlier process
    /// wrote down.
    pub(crate) fn begin(
        &mut self,
        policy: &Policy,
        kept: Option<Autoscaler>,
        desired: u32,
        now: MonoTime,
    ) {
        let mut scaler = match kept {
            Some(kept) => kept.resume(policy, desired, now),
            None => Autoscaler::new(policy, desired, now),
        };
        // A second without a measurement decides nothing; it tells how things stand.
        self.targets = scaler.second(policy, None, now).targets;
        self.scaler = Some(scaler);
        self.desired = desired;
    }

    /// A second has passed; `None` while the axes do not run.
    pub(crate) fn second(
        &mut self,
        policy: &Policy,
        sample: Option<Sample>,
        now: MonoTime,
    ) -> Option<Orders> {
        let orders = self.scaler.as_mut()?.second(policy, sample, now);
        Some(self.obey(orders))
    }

    /// A request waits and there is no replica.
    pub(crate) fn wake(&mut self, policy: &Policy, queued: u32, now: MonoTime) -> Option<Orders> {
        let orders = self.scaler.as_mut()?.wake(policy, queued, now);
        Some(self.obey(orders))
    }

    fn obey(&mut self, orders: Orders) -> Orders {
        self.desired = orders.desired_replicas;
        if self.targets != orders.targets {
            self.targets.clone_from(&orders.targets);
        }
        orders
    }

    /// Chooses who explores, where a class is to.
    pub(crate) fn choose_explorers(
        &mut self,
        choose: impl Fn(&HardwareClass, Option<&ReplicaId>) -> Option<ReplicaId>,
    ) {
        let asked = self.targets.iter().filter(|it| it.explore.is_some());
        let chosen = asked.filter_map(|it| {
            let explorer = choose(&it.class, self.explorers.get(&it.class))?;
            Some((it.class.clone(), explorer))
        });
        self.explorers = chosen.collect();
    }

    /// How a class' target came to be.
    pub(crate) fn origin(entity: &ServedEntity, target: Option<&ClassTarget>) -> TargetOrigin {
        match (entity.scaling.pinned_target, target) {
            (Some(_), _) => TargetOrigin::Pinned,
            (None, Some(target)) if !target.guess => TargetOrigin::Learned,
            (None, _) => TargetOrigin::Guess,
        }
    }

    /// Never below: the minimum, what provisioned concurrency needs, and 1 unless zero is allowed.
    pub(crate) fn floor(&self, entity: &ServedEntity) -> u32 {
        let scaling = &entity.scaling;
        let provisioned = scaling.provisioned_concurrency;
        let provisioned = provisioned.div_ceil(self.provisioned_target(entity));
        scaling
            .min_replicas
            .max(provisioned)
            .max(u32::from(!scaling.scale_to_zero))
            .min(scaling.max_replicas)
    }

    /// The requests at once that one replica is counted for against provisioned concurrency. A guess
    /// below the vendor's own unit would buy several times what was asked for.
    fn provisioned_target(&self, entity: &ServedEntity) -> u32 {
        let pinned = entity.scaling.pinned_target;
        match (pinned.or_else(|| self.learned()), self.target()) {
            (Some(known), _) => known.max(1),
            (None, guess) => guess.unwrap_or(1).max(DEFAULT_TARGET_CONCURRENCY),
        }
    }

    /// What the axes are to keep to.
    pub(crate) fn policy(
        &self,
        entity: &ServedEntity,
        startup: Option<Duration>,
        settings: &Settings,
    ) -> Policy {
        let scaling = &entity.scaling;
        Policy {
            min_replicas: scaling.min_replicas,
            max_replicas: scaling.max_replicas,
            scale_to_zero: scaling.scale_to_zero,
            provisioned_concurrency: self.provisioned(entity),
            latency_objective: scaling
                .latency_objective_ms
                .map(|ms| Duration::from_millis(u64::from(ms))),
            startup,
            pinned_target: scaling.pinned_target,
            initial_target: self.prior,
            hold_min: settings.hold_min,
            hold_max: settings.hold_max,
            idle: settings.scale_to_zero_idle,
            ..Policy::default()
        }
    }

    /// Provisioned concurrency in units of the target that the axes count in, which may be a guess.
    fn provisioned(&self, entity: &ServedEntity) -> u32 {
        let units = entity.scaling.provisioned_concurrency;
        let replicas = units.div_ceil(self.provisioned_target(entity));
        let target = entity.scaling.pinned_target.or(self.target()).unwrap_or(1);
        replicas.saturating_mul(target).min(units)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use shared::digest::Digest;
    use shared::ids::{EntityName, ModelName, RuntimeName};
    use shared::manifest::ManifestId;
    use shared::runtime::Resources;
    use shared::spec::{Scaling, Sizing};

    use super::*;

    fn entity(scaling: Scaling) -> ServedEntity {
        ServedEntity {
            name: EntityName::parse("iris-1").expect("valid"),
            model: ModelName::parse("iris").expect("valid"),
            model_version: 1,
            manifest: ManifestId(Digest::of(b"iris")),
            runtime: RuntimeName::parse("mlflow").expect("valid"),
            resources: Resources {
                memory_bytes: 1,
                cpu_millis: 1000,
                pids: 1,
                gpus: 0,
            },
            environment: BTreeMap::new(),
            scaling,
            sizing: Sizing::Unstated,
            workload_type: "CPU".into(),
        }
    }

    fn provisioned(units: u32) -> ServedEntity {
        entity(Scaling {
            min_replicas: 1,
            max_replicas: 10,
            provisioned_concurrency: units,
            ..Scaling::default()
        })
    }

    fn class(name: &str, target: u32) -> ClassTarget {
        ClassTarget {
            class: HardwareClass(name.into()),
            target_concurrency: target,
            explore: None,
            guess: false,
        }
    }

    fn axes(targets: Vec<ClassTarget>) -> Axes {
        Axes {
            targets,
            ..Axes::default()
        }
    }

    #[test]
    fn provisioned_concurrency_is_replicas_by_what_was_learned_and_by_the_vendors_unit_before() {
        let guess = |target| {
            axes(vec![ClassTarget {
                guess: true,
                ..class("cpu", target)
            }])
        };
        let floor = |axes: &Axes| axes.floor(&provisioned(8));
        assert_eq!(floor(&Axes::default()), 2);
        assert_eq!((floor(&guess(1)), floor(&guess(3))), (2, 2));
        assert_eq!(floor(&guess(16)), 1);
        assert_eq!(floor(&axes(vec![class("cpu", 2)])), 4);
        assert_eq!(floor(&axes(vec![class("cpu", 8)])), 1);
        // The axes count in their own target; the same number of replicas comes of it.
        for axes in [guess(1), guess(3), guess(16), axes(vec![class("cpu", 2)])] {
            let target = axes.target().expect("given");
            let replicas = axes.provisioned(&provisioned(8)).div_ceil(target);
            assert_eq!(replicas, floor(&axes), "{axes:?}");
        }
    }

    #[test]
    fn the_floor_never_lies_above_the_maximum_nor_below_one_unless_zero_is_allowed() {
        assert_eq!(Axes::default().floor(&provisioned(1024)), 10);
        let nothing = |scale_to_zero| {
            entity(Scaling {
                max_replicas: 3,
                scale_to_zero,
                ..Scaling::default()
            })
        };
        assert_eq!(Axes::default().floor(&nothing(false)), 1);
        assert_eq!(Axes::default().floor(&nothing(true)), 0);
    }

    #[test]
    fn a_class_takes_its_own_target_and_an_unknown_one_that_of_most() {
        let axes = axes(vec![class("H100", 32), class("L4", 8)]);
        let target = |name: &str| axes.target_of(Some(&HardwareClass(name.into())));
        assert_eq!((target("H100"), target("L4")), (Some(32), Some(8)));
        assert_eq!(
            (target("other"), axes.target_of(None)),
            (Some(32), Some(32))
        );
        assert!(!axes.uniform());
    }

    #[test]
    fn one_replica_explores_as_long_as_its_class_is_to_and_stays_the_same() {
        let ids = [1, 2, 3].map(ReplicaId::from_bits);
        let mut axes = axes(vec![ClassTarget {
            explore: Some(64),
            ..class("cpu", 32)
        }]);
        let cpu = HardwareClass("cpu".into());
        let lowest = |_: &HardwareClass, now: Option<&ReplicaId>| now.or(ids.first()).cloned();
        axes.choose_explorers(lowest);
        assert_eq!(axes.exploring(&cpu, &ids[0]), Some(64));
        assert_eq!(axes.exploring(&cpu, &ids[1]), None);
        axes.targets[0].explore = None;
        axes.choose_explorers(lowest);
        assert!(axes.uniform());
        assert_eq!(axes.exploring(&cpu, &ids[0]), None);
    }
}
