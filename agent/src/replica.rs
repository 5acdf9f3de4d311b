//! What a replica is on this node, and the one thing to do about it next. Pure.
//!
//! ```text
//! wanted:      (image and model there) -> Start -> Running -> Announce        (New -> Started)
//!              ended by itself, lost, or three failed starts -> RecordEnd     (-> Ended: stays until
//!              the plan drops it, the scheduler replaces it) -> Remove what is left
//! not wanted:  Running -> Signal -> (grace) -> Kill -> Exited -> Remove -> forgotten
//! no plan:     nothing, whatever it is
//! ```
//!
//! What always holds: without a plan nothing is started, stopped or removed; a replica whose state is
//! not known is looked at, never acted upon; a replica that may have run in this boot is not started
//! again under the same id, since only the scheduler decides what replaces it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::report::{ReplicaExit, ReplicaPhase};
use shared::units::MonoTime;

/// Failed starts before a replica counts as failed.
pub const MAX_START_ATTEMPTS: u32 = 3;

/// Which boot of the machine: tasks do not outlive it, container records do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// What containerd had under a replica's id at the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    Absent,
    /// A record without a task: half made, or the machine was rebooted, or its shim died.
    NoTask,
    /// A task that was never started.
    Created,
    Running,
    Exited(ReplicaExit),
    /// A call timed out or gave no clear answer: it may or may not have happened.
    Unknown,
}

/// What the ledger remembers of a replica's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Life {
    New,
    /// It was seen running in this boot.
    Started {
        boot: BootId,
    },
    /// It ended although the plan had it.
    Ended {
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    },
}

/// A [`ReplicaExit`] as the ledger writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub out_of_memory: bool,
}

impl From<&ReplicaExit> for Exit {
    fn from(exit: &ReplicaExit) -> Self {
        Self {
            code: exit.code,
            out_of_memory: exit.out_of_memory,
        }
    }
}

impl From<Exit> for ReplicaExit {
    fn from(exit: Exit) -> Self {
        Self {
            code: exit.code,
            out_of_memory: exit.out_of_memory,
        }
    }
}

/// Whether the plan has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Yes(Needs),
    No,
    /// No plan is held: everything goes on as it is.
    NoPlan,
}

/// What a wanted replica waits for before it can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needs {
    Image { reason: String },
    Model { reason: String },
    Nothing,
}

/// What there is in `run_dir`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalFiles {
    pub folder: bool,
    /// The file that tells the gateway of it.
    pub announced: bool,
    /// A network namespace, or the record of an interface.
    pub network: bool,
}

/// How far a stop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopProgress {
    NotAsked,
    Asked { at: MonoTime },
}

/// Failures of a step, until one succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: String,
    pub attempts: u32,
    pub retry_at: MonoTime,
}

impl Trouble {
    /// The next one after `before`: 1, 2, 4 .. 30 s apart.
    pub fn after(before: Option<&Trouble>, reason: String, now: MonoTime) -> Self {
        let attempts = before
            .map_or(0, |trouble| trouble.attempts)
            .saturating_add(1);
        let wait = Duration::from_secs(1 << (attempts - 1).min(5)).min(Duration::from_secs(30));
        Self {
            reason,
            attempts,
            retry_at: now + wait,
        }
    }
}

/// All that is known of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    pub wanted: Wanted,
    pub life: Life,
    pub container: ContainerState,
    pub local: LocalFiles,
    pub stop: StopProgress,
    pub grace: Duration,
    pub trouble: Option<Trouble>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make folder, container and task and start it; clears whatever a broken attempt left.
    Start,
    /// Tell the gateway of it.
    Announce,
    /// Remember that it ended, before containerd is told to forget it.
    RecordEnd {
        reason: String,
        exit: Option<ReplicaExit>,
    },
    Signal,
    Kill,
    /// Clear everything that there is of it.
    Remove,
    /// Nothing is left: drop it from the ledger.
    Forget,
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Step::Start => "start",
            Step::Announce => "announce",
            Step::RecordEnd { .. } => "record-end",
            Step::Signal => "signal",
            Step::Kill => "kill",
            Step::Remove => "remove",
            Step::Forget => "forget",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub phase: ReplicaPhase,
    pub reason: String,
    pub step: Option<Step>,
}

fn verdict(phase: ReplicaPhase, reason: impl Into<String>, step: Option<Step>) -> Verdict {
    Verdict {
        phase,
        reason: reason.into(),
        step,
    }
}

pub fn decide(view: &ReplicaView, boot: &BootId, now: MonoTime) -> Verdict {
    match (&view.wanted, &view.life) {
        (Wanted::NoPlan, _) => without_plan(view),
        (Wanted::No, _) => unwanted(view, now),
        (Wanted::Yes(_), Life::Ended { reason, .. }) => ended(view, reason, now),
        (Wanted::Yes(needs), Life::New) => wanted(view, needs, false, now),
        (Wanted::Yes(needs), Life::Started { boot: started }) => {
            wanted(view, needs, started == boot, now)
        }
    }
}

fn without_plan(view: &ReplicaView) -> Verdict {
    match &view.container {
        ContainerState::Running => verdict(ReplicaPhase::Running, "", None),
        ContainerState::Exited(exit) => verdict(ReplicaPhase::Failed, exit_reason(exit), None),
        ContainerState::Unknown => unknown(),
        ContainerState::Absent | ContainerState::NoTask | ContainerState::Created => {
            verdict(ReplicaPhase::Pending, "no plan is held yet", None)
        }
    }
}

fn unknown() -> Verdict {
    let reason = "a call to containerd gave no answer: looking before acting";
    verdict(ReplicaPhase::Unknown, reason, None)
}

fn wanted(view: &ReplicaView, needs: &Needs, ran_in_this_boot: bool, now: MonoTime) -> Verdict {
    match &view.container {
        ContainerState::Unknown => unknown(),
        ContainerState::Running => {
            let step = (!view.local.announced).then_some(Step::Announce);
            verdict(
                ReplicaPhase::Running,
                trouble_reason(view),
                patient(view, step, now),
            )
        }
        ContainerState::Exited(exit) => failed(exit_reason(exit), Some(exit.clone())),
        ContainerState::Absent | ContainerState::NoTask if ran_in_this_boot => failed(
            "it is gone from containerd: its shim died, or somebody removed it".into(),
            None,
        ),
        ContainerState::Absent | ContainerState::NoTask | ContainerState::Created => {
            starting(view, needs, now)
        }
    }
}

fn failed(reason: String, exit: Option<ReplicaExit>) -> Verdict {
    let step = Step::RecordEnd {
        reason: reason.clone(),
        exit,
    };
    verdict(ReplicaPhase::Failed, reason, Some(step))
}

fn starting(view: &ReplicaView, needs: &Needs, now: MonoTime) -> Verdict {
    match needs {
        Needs::Image { reason } => verdict(ReplicaPhase::PullingImage, reason.clone(), None),
        Needs::Model { reason } => verdict(ReplicaPhase::FetchingModel, reason.clone(), None),
        Needs::Nothing => match &view.trouble {
            None => verdict(ReplicaPhase::Creating, "", Some(Step::Start)),
            Some(trouble) if trouble.attempts >= MAX_START_ATTEMPTS => {
                failed(format!("could not be started: {}", trouble.reason), None)
            }
            Some(trouble) => {
                let step = (now >= trouble.retry_at).then_some(Step::Start);
                verdict(ReplicaPhase::Creating, trouble.reason.clone(), step)
            }
        },
    }
}

/// It ended while wanted: what is left of it goes, the record of its end stays.
fn ended(view: &ReplicaView, reason: &str, now: MonoTime) -> Verdict {
    let step = match &view.container {
        ContainerState::Unknown => None,
        // A start that timed out came true after all.
        ContainerState::Running | ContainerState::Created => Some(Step::Kill),
        ContainerState::Exited(_) | ContainerState::NoTask => Some(Step::Remove),
        ContainerState::Absent => has_files(view).then_some(Step::Remove),
    };
    verdict(ReplicaPhase::Failed, reason, patient(view, step, now))
}

fn unwanted(view: &ReplicaView, now: MonoTime) -> Verdict {
    let stopping = |step| verdict(ReplicaPhase::Stopping, trouble_reason(view), step);
    match &view.container {
        ContainerState::Unknown => unknown(),
        ContainerState::Running => match view.stop {
            StopProgress::NotAsked => stopping(patient(view, Some(Step::Signal), now)),
            StopProgress::Asked { at } if now.saturating_since(at) >= view.grace => {
                stopping(patient(view, Some(Step::Kill), now))
            }
            StopProgress::Asked { .. } => stopping(None),
        },
        ContainerState::Created => stopping(patient(view, Some(Step::Kill), now)),
        ContainerState::Exited(_) | ContainerState::NoTask => {
            stopping(patient(view, Some(Step::Remove), now))
        }
        ContainerState::Absent if has_files(view) => {
            stopping(patient(view, Some(Step::Remove), now))
        }
        ContainerState::Absent => verdict(ReplicaPhase::Stopped, "", Some(Step::Forget)),
    }
}

/// A step that failed waits for its time.
fn patient(view: &ReplicaView, step: Option<Step>, now: MonoTime) -> Option<Step> {
    step.filter(|_| view.trouble.as_ref().is_none_or(|t| now >= t.retry_at))
}

fn has_files(view: &ReplicaView) -> bool {
    view.local.folder || view.local.announced || view.local.network
}

fn trouble_reason(view: &ReplicaView) -> String {
    view.trouble
        .as_ref()
        .map_or_else(String::new, |trouble| trouble.reason.clone())
}

/// Why it ended, for people.
pub fn exit_reason(exit: &ReplicaExit) -> String {
    match exit {
        ReplicaExit {
            out_of_memory: true,
            code,
        } => format!("out of memory (exit code {code})"),
        ReplicaExit { code, .. } if *code > 128 => format!("killed by signal {}", code - 128),
        ReplicaExit { code, .. } => format!("exited with code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn boot() -> BootId {
        BootId("b1".into())
    }

    fn view(wanted: Wanted, life: Life, container: ContainerState) -> ReplicaView {
        ReplicaView {
            wanted,
            life,
            container,
            local: LocalFiles::default(),
            stop: StopProgress::NotAsked,
            grace: Duration::from_secs(20),
            trouble: None,
        }
    }

    fn step(view: &ReplicaView, at_secs: u64) -> Option<Step> {
        decide(view, &boot(), MonoTime::from_secs(at_secs)).step
    }

    fn started() -> Life {
        Life::Started { boot: boot() }
    }

    #[test]
    fn a_wanted_replica_starts_once_image_and_model_are_there() {
        let needs = Needs::Model {
            reason: String::new(),
        };
        let waiting = view(Wanted::Yes(needs), Life::New, ContainerState::Absent);
        assert_eq!(step(&waiting, 0), None);
        let ready = view(
            Wanted::Yes(Needs::Nothing),
            Life::New,
            ContainerState::Absent,
        );
        assert_eq!(step(&ready, 0), Some(Step::Start));
    }

    #[test]
    fn a_running_replica_is_announced_once() {
        let mut running = view(
            Wanted::Yes(Needs::Nothing),
            started(),
            ContainerState::Running,
        );
        assert_eq!(step(&running, 0), Some(Step::Announce));
        running.local.announced = true;
        assert_eq!(step(&running, 0), None);
    }

    #[test]
    fn a_replica_that_ended_by_itself_is_recorded_then_removed_and_not_started_again() {
        let exit = ReplicaExit {
            code: 137,
            out_of_memory: true,
        };
        let mut replica = view(
            Wanted::Yes(Needs::Nothing),
            started(),
            ContainerState::Exited(exit.clone()),
        );
        let Some(Step::RecordEnd { reason, exit: kept }) = step(&replica, 0) else {
            panic!("the exit is not recorded");
        };
        assert!(reason.contains("out of memory"), "{reason}");
        assert_eq!(kept, Some(exit.clone()));
        replica.life = Life::Ended {
            reason,
            exit: Some(Exit::from(&exit)),
        };
        assert_eq!(step(&replica, 0), Some(Step::Remove));
        replica.container = ContainerState::Absent;
        assert_eq!(step(&replica, 0), None);
        assert_eq!(
            decide(&replica, &boot(), MonoTime::ZERO).phase,
            ReplicaPhase::Failed
        );
    }

    #[test]
    fn after_a_reboot_a_wanted_replica_is_made_again_but_a_dead_shim_is_a_failure() {
        let lost = view(
            Wanted::Yes(Needs::Nothing),
            started(),
            ContainerState::NoTask,
        );
        assert!(matches!(step(&lost, 0), Some(Step::RecordEnd { .. })));
        let mut rebooted = lost;
        rebooted.life = Life::Started {
            boot: BootId("b0".into()),
        };
        assert_eq!(step(&rebooted, 0), Some(Step::Start));
    }

    #[test]
    fn a_stop_is_a_signal_then_grace_then_a_kill_then_a_removal() {
        let mut replica = view(Wanted::No, started(), ContainerState::Running);
        assert_eq!(step(&replica, 100), Some(Step::Signal));
        replica.stop = StopProgress::Asked {
            at: MonoTime::from_secs(100),
        };
        assert_eq!(step(&replica, 119), None);
        assert_eq!(step(&replica, 120), Some(Step::Kill));
        replica.container = ContainerState::Exited(ReplicaExit {
            code: 137,
            out_of_memory: false,
        });
        assert_eq!(step(&replica, 121), Some(Step::Remove));
        replica.container = ContainerState::Absent;
        replica.local.folder = true;
        assert_eq!(step(&replica, 122), Some(Step::Remove));
        replica.local.folder = false;
        assert_eq!(step(&replica, 123), Some(Step::Forget));
    }

    #[test]
    fn a_start_that_fails_is_tried_three_times_with_growing_pauses() {
        let mut replica = view(
            Wanted::Yes(Needs::Nothing),
            Life::New,
            ContainerState::Absent,
        );
        let mut now = MonoTime::ZERO;
        for pause in [1, 2] {
            assert_eq!(
                decide(&replica, &boot(), now).step,
                Some(Step::Start),
                "{pause}"
            );
            let trouble = Trouble::after(replica.trouble.as_ref(), "no room".into(), now);
            assert_eq!(
                trouble.retry_at.saturating_since(now),
                Duration::from_secs(pause)
            );
            now = trouble.retry_at;
            replica.trouble = Some(trouble);
        }
        replica.trouble = Some(Trouble::after(
            replica.trouble.as_ref(),
            "no room".into(),
            now,
        ));
        let last = decide(&replica, &boot(), now);
        assert_eq!(last.phase, ReplicaPhase::Failed);
        assert_eq!(last.reason, "could not be started: no room");
    }

    #[test]
    fn a_step_that_failed_is_not_tried_again_before_its_time() {
        let wanted = Wanted::Yes(Needs::Nothing);
        let mut announce = view(wanted, started(), ContainerState::Running);
        let mut signal = view(Wanted::No, started(), ContainerState::Running);
        let mut kill = view(Wanted::No, started(), ContainerState::Created);
        let trouble = Trouble::after(None, "refused".into(), MonoTime::ZERO);
        for (replica, want) in [
            (&mut announce, Step::Announce),
            (&mut signal, Step::Signal),
            (&mut kill, Step::Kill),
        ] {
            replica.trouble = Some(trouble.clone());
            assert_eq!(step(replica, 0), None, "{want:?}");
            assert_eq!(step(replica, 1), Some(want));
        }
    }

    fn any_view() -> impl Strategy<Value = ReplicaView> {
        let exit = |code| ReplicaExit {
            code,
            out_of_memory: code % 2 == 0,
        };
        let wanted = prop_oneof![
            Just(Wanted::NoPlan),
            Just(Wanted::No),
            Just(Wanted::Yes(Needs::Nothing)),
            Just(Wanted::Yes(Needs::Image {
                reason: String::new()
            })),
            Just(Wanted::Yes(Needs::Model {
                reason: String::new()
            })),
        ];
        let life = prop_oneof![
            Just(Life::New),
            Just(started()),
            Just(Life::Started {
                boot: BootId("b0".into())
            }),
            Just(Life::Ended {
                reason: "x".into(),
                exit: None
            }),
        ];
        let container = prop_oneof![
            Just(ContainerState::Absent),
            Just(ContainerState::NoTask),
            Just(ContainerState::Created),
            Just(ContainerState::Running),
            (0..200i32).prop_map(move |code| ContainerState::Exited(exit(code))),
            Just(ContainerState::Unknown),
        ];
        let stop = prop_oneof![
            Just(StopProgress::NotAsked),
            (0u64..200).prop_map(|s| StopProgress::Asked {
                at: MonoTime::from_secs(s)
            }),
        ];
        let trouble =
            proptest::option::of((1u32..6, 0u64..200).prop_map(|(attempts, at)| Trouble {
                reason: "t".into(),
                attempts,
                retry_at: MonoTime::from_secs(at),
            }));
        (wanted, life, container, stop, trouble, any::<[bool; 3]>()).prop_map(
            |(wanted, life, container, stop, trouble, [folder, announced, network])| ReplicaView {
                wanted,
                life,
                container,
                local: LocalFiles {
                    folder,
                    announced,
                    network,
                },
                stop,
                grace: Duration::from_secs(20),
                trouble,
            },
        )
    }

    proptest! {
        #[test]
        fn without_a_plan_nothing_is_done(mut view in any_view(), at in 0u64..300) {
            view.wanted = Wanted::NoPlan;
            prop_assert_eq!(step(&view, at), None);
        }

        #[test]
        fn what_is_not_known_is_not_acted_upon(mut view in any_view(), at in 0u64..300) {
            view.container = ContainerState::Unknown;
            prop_assert_eq!(step(&view, at), None);
        }

        #[test]
        fn a_wanted_replica_that_runs_and_has_not_ended_is_never_stopped(
            mut view in any_view(), at in 0u64..300,
        ) {
            view.container = ContainerState::Running;
            view.wanted = Wanted::Yes(Needs::Nothing);
            if !matches!(view.life, Life::Ended { .. }) {
                prop_assert!(matches!(step(&view, at), None | Some(Step::Announce)));
            }
        }

        #[test]
        fn nothing_that_runs_is_removed_or_forgotten(mut view in any_view(), at in 0u64..300) {
            view.container = ContainerState::Running;
            prop_assert!(!matches!(step(&view, at), Some(Step::Remove | Step::Forget | Step::Start)));
        }

        #[test]
        fn an_exit_that_is_wanted_is_recorded_before_containerd_forgets_it(
            mut view in any_view(), at in 0u64..300,
        ) {
            let wanted = matches!(view.wanted, Wanted::Yes(_));
            if wanted && matches!(view.container, ContainerState::Exited(_))
                && !matches!(view.life, Life::Ended { .. })
            {
                let recorded = matches!(step(&view, at), Some(Step::RecordEnd { .. }));
                prop_assert!(recorded);
            }
            view.trouble = None;
            let _ = step(&view, at);
        }
    }
}
