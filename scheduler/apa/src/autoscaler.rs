//! Both axes of one served entity together: a second of measurements in, what there should be out.
//!
//! This is what the scheduler, the simulator and `simulate --stdio` run. It is called once a second;
//! it decides replicas every 5 s and at once for a jump that cannot be chance, and
//! target_concurrency every 30 s.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::units::MonoTime;

use crate::explain::Explanation;
use crate::sample::{HardwareClass, Sample};
use crate::signal::Window;
use crate::{horizontal, vertical};

/// What an operator asked of a served entity, and what is known of it beside its traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub min_replicas: u32,
    /// At least 1.
    pub max_replicas: u32,
    pub scale_to_zero: bool,
    /// Capacity, in requests at once, that is kept whatever the demand.
    pub provisioned_concurrency: u32,
    /// The p95 of a request's time at the replica that must hold; `None`: 1.5 times the p95 at low
    /// load.
    pub latency_objective: Option<Duration>,
    /// From wanted to ready, as measured; `None` before the first start.
    pub startup: Option<Duration>,
    /// Fixed by the operator: the vertical axis leaves it alone.
    pub pinned_target: Option<u32>,
    /// A first guess (the last version's, another entity's of the same runtime); `None`: 1.
    pub initial_target: Option<u32>,
    /// The vertical axis never goes above.
    pub max_target: u32,
    /// Bounds of the hold before a scale-down.
    pub hold_min: Duration,
    pub hold_max: Duration,
    /// Without demand for this long an entity that may goes to zero.
    pub idle: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min_replicas: 1,
            max_replicas: 200,
            scale_to_zero: false,
            provisioned_concurrency: 0,
            latency_objective: None,
            startup: None,
            pinned_target: None,
            initial_target: None,
            max_target: 1000,
            hold_min: Duration::from_secs(60),
            hold_max: Duration::from_secs(300),
            idle: Duration::from_secs(600),
        }
    }
}

/// What one served entity's axes remember. It may be written down and read back: a restarted
/// scheduler goes on with what was learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Autoscaler {
    window: Window,
    horizontal: horizontal::State,
    /// By class; of classes that have had a replica.
    vertical: BTreeMap<HardwareClass, Learned>,
    /// The class of most replicas, for a stretch without any.
    main: HardwareClass,
    #[serde(with = "crate::mono_millis::optional")]
    last: Option<MonoTime>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Learned {
    axis: vertical::State,
    /// Ready replicas when there was a sample last, the exploring one included.
    replicas: u32,
}

/// What there should be after a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Orders {
    pub desired_replicas: u32,
    /// What each replica takes at once, by hardware class; never empty. The first is the class of
    /// most replicas.
    pub targets: Vec<ClassTarget>,
    /// Where a decision of the horizontal axis was due in this second.
    pub horizontal: Option<Decision>,
    /// Where decisions of the vertical axis were due, one a class that has replicas.
    pub vertical: Vec<(HardwareClass, Decision)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ClassTarget {
    pub class: HardwareClass,
    pub target_concurrency: u32,
    /// One replica of the class is to take this many instead: nothing is known beyond the target.
    pub explore: Option<u32>,
    /// Still a guess: no bound has been seen yet.
    pub guess: bool,
}

/// One decision of an axis, for the history of decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub before: u32,
    /// Replicas, or target_concurrency.
    pub after: u32,
    pub explanation: Explanation,
}

impl Orders {
    /// What most replicas take at once.
    pub fn target_concurrency(&self) -> u32 {
        self.targets
            .first()
            .map_or(1, |class| class.target_concurrency)
    }
}

/// Classes beyond these are not learned: a label that changes with each node must not grow the state.
const MAX_CLASSES: usize = 16;

impl Autoscaler {
    /// `desired` replicas are wanted already (a floor, or what a restart found): they are held like
    /// any other need.
    pub fn new(policy: &Policy, desired: u32, now: MonoTime) -> Self {
        let axis = vertical::State::new(policy, now);
        let target = f64::from(axis.target());
        let main = HardwareClass::default();
        Self {
            window: Window::default(),
            horizontal: horizontal::State::new(desired, target, now),
            vertical: BTreeMap::from([(main.clone(), Learned { axis, replicas: 0 })]),
            main,
            last: None,
        }
    }

    /// Takes up a state that an earlier process wrote down: what was learned stays, times start
    /// again at `now`, and what is there is held.
    #[must_use]
    pub fn resume(mut self, policy: &Policy, desired: u32, now: MonoTime) -> Self {
        self.window = self.window.without_times();
        for learned in self.vertical.values_mut() {
            learned.axis.resume(policy, now);
            learned.replicas = 0;
        }
        let target = self.mean_target(policy);
        self.horizontal = horizontal::State::new(desired, target, now);
        self.last = None;
        self
    }

    /// A second has passed. `None`: nothing was measured in it. A `now` that does not lie after the
    /// last one changes nothing: the second came late or twice.
    pub fn second(&mut self, policy: &Policy, sample: Option<Sample>, now: MonoTime) -> Orders {
        if self.last.is_some_and(|last| now <= last) {
            return self.orders(policy, None, Vec::new());
        }
        self.last = Some(now);
        let sample = sample.and_then(Sample::checked);
        if let Some(sample) = &sample {
            self.window.record(sample, now);
            self.admit_classes(policy, sample, now);
        }
        let vertical = self.decide_targets(policy, sample.as_ref(), now);
        let horizontal = self.decide_replicas(policy, sample.as_ref(), now);
        self.orders(policy, horizontal, vertical)
    }

    fn decide_targets(
        &mut self,
        policy: &Policy,
        sample: Option<&Sample>,
        now: MonoTime,
    ) -> Vec<(HardwareClass, Decision)> {
        let mut decisions = Vec::new();
        for (class, learned) in &mut self.vertical {
            let find = |exploring| {
                let groups = sample.map_or(&[][..], |sample| &sample.groups);
                groups
                    .iter()
                    .find(|group| group.class == *class && group.exploring == exploring)
            };
            let observation = vertical::Observation {
                group: find(false),
                explorer: find(true),
            };
            // A state is a few hundred bytes on the stack; what it holds is moved, not copied.
            let state = std::mem::replace(&mut learned.axis, vertical::State::new(policy, now));
            let (decision, state) = vertical::decide(policy, state, observation, now);
            learned.axis = state;
            if let Some(decision) = decision
                && (learned.replicas > 0 || *class == self.main)
            {
                decisions.push((class.clone(), decision));
            }
        }
        decisions
    }

    fn decide_replicas(
        &mut self,
        policy: &Policy,
        sample: Option<&Sample>,
        now: MonoTime,
    ) -> Option<Decision> {
        // Of most seconds nothing is asked: only a jump brings a decision forward.
        let measured = sample.is_some();
        if !self.horizontal.due(measured, now) && !self.window.may_jump(now) {
            return None;
        }
        let observation = horizontal::Observation {
            signal: self.window.signal(now),
            target: self.mean_target(policy),
            guess: policy.pinned_target.is_none()
                && self.main_axis().is_none_or(vertical::State::guess),
            ready: sample.map_or(0, |sample| sample.replicas_ready),
            starting: sample.map_or(0, |sample| sample.replicas_starting),
        };
        let state = std::mem::replace(&mut self.horizontal, horizontal::State::taken());
        let (decision, state) = horizontal::decide(policy, state, &observation, now);
        self.horizontal = state;
        decision
    }

    /// A request waits and there is no replica: decides at once.
    pub fn wake(&mut self, policy: &Policy, queued: u32, now: MonoTime) -> Orders {
        let target = self.mean_target(policy);
        let (decision, state) =
            horizontal::wake(policy, self.horizontal.clone(), queued, target, now);
        self.horizontal = state;
        self.orders(policy, Some(decision), Vec::new())
    }

    /// Replicas that are wanted now.
    pub fn desired(&self) -> u32 {
        self.horizontal.desired()
    }

    /// What was learned of a class; `None` before it had a replica.
    pub fn target(&self, class: &HardwareClass) -> Option<u32> {
        self.vertical
            .get(class)
            .map(|learned| learned.axis.target())
    }

    fn main_axis(&self) -> Option<&vertical::State> {
        self.vertical.get(&self.main).map(|learned| &learned.axis)
    }

    /// Capacity of a replica as the fleet is now: replicas of different classes take different
    /// numbers.
    fn mean_target(&self, policy: &Policy) -> f64 {
        if let Some(pinned) = policy.pinned_target {
            return f64::from(pinned.max(1));
        }
        let (sum, replicas) =
            self.vertical
                .values()
                .fold((0.0, 0.0), |(sum, replicas), learned| {
                    let these = f64::from(learned.replicas);
                    (
                        sum + these * f64::from(learned.axis.target()),
                        replicas + these,
                    )
                });
        if replicas > 0.0 {
            sum / replicas
        } else {
            self.main_axis()
                .map_or(1.0, |axis| f64::from(axis.target()))
        }
    }

    /// Classes that have replicas now. The first class of all takes over what the entity began with.
    fn admit_classes(&mut self, policy: &Policy, sample: &Sample, now: MonoTime) {
        if sample.groups.is_empty() {
            return;
        }
        for learned in self.vertical.values_mut() {
            learned.replicas = 0;
        }
        for group in &sample.groups {
            if !self.vertical.contains_key(&group.class) {
                let unnamed = self.vertical.remove(&HardwareClass::default());
                let axis =
                    unnamed.map_or_else(|| vertical::State::new(policy, now), |first| first.axis);
                if self.vertical.len() >= MAX_CLASSES {
                    continue;
                }
                self.vertical
                    .insert(group.class.clone(), Learned { axis, replicas: 0 });
            }
            if let Some(learned) = self.vertical.get_mut(&group.class) {
                learned.replicas = learned.replicas.saturating_add(group.replicas);
            }
        }
        let most = self
            .vertical
            .iter()
            .max_by_key(|(_, learned)| learned.replicas);
        if let Some((class, _)) = most
            && (self.main != *class)
        {
            self.main = class.clone();
        }
    }

    fn orders(
        &self,
        policy: &Policy,
        horizontal: Option<Decision>,
        vertical: Vec<(HardwareClass, Decision)>,
    ) -> Orders {
        let mut targets: Vec<ClassTarget> = (self.vertical.iter())
            .filter(|(class, learned)| learned.replicas > 0 || **class == self.main)
            .map(|(class, learned)| ClassTarget {
                class: class.clone(),
                target_concurrency: learned.axis.target(),
                explore: learned
                    .axis
                    .explore(policy)
                    .filter(|_| learned.replicas > 1),
                guess: policy.pinned_target.is_none() && learned.axis.guess(),
            })
            .collect();
        // The class of most replicas comes first.
        targets.sort_by_key(|target| target.class != self.main);
        Orders {
            desired_replicas: self.horizontal.desired(),
            targets,
            horizontal,
            vertical,
        }
    }
}
