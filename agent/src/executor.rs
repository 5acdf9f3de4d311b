//! Carries out actions at the same time, with a bound for each kind: a slow fetch never stands in the
//! way of stopping a replica. What does not fit is dropped; the next pass asks for it again.
//!
//! Nothing is decided here, and nothing is remembered but what is under way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::telemetry::Chain;
use shared::ids::{ImageRef, ReplicaId};
use shared::manifest::ManifestId;
use shared::plan::{ImageOrigin, PlannedImage, PlannedReplica};
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

use crate::containerd::images::ImageSource;
use crate::containerd::transfer::Tally;
use crate::models::{Models, Progress};
use crate::reconcile::Subject;
use crate::steps::{StartOrder, StepError, Steps};

/// An action with everything that it needs.
#[derive(Debug)]
pub enum Work {
    Start(Box<StartOrder>),
    Announce {
        replica: Box<PlannedReplica>,
        uid: u32,
    },
    Signal {
        id: ReplicaId,
        signal: String,
    },
    Kill(ReplicaId),
    Remove(ReplicaId),
    HoldImage(Box<PlannedImage>),
    HoldModel(ManifestId),
    DropImage(ImageRef),
}

impl Work {
    pub fn subject(&self) -> Subject {
        match self {
            Work::Start(order) => Subject::Replica(order.replica.id.clone()),
            Work::Announce { replica, .. } => Subject::Replica(replica.id.clone()),
            Work::Signal { id, .. } | Work::Kill(id) | Work::Remove(id) => {
                Subject::Replica(id.clone())
            }
            Work::HoldImage(image) => Subject::Image(image.reference.clone()),
            Work::DropImage(reference) => Subject::Image(reference.clone()),
            Work::HoldModel(manifest) => Subject::Model(*manifest),
        }
    }

    pub fn kind(&self) -> WorkKind {
        match self {
            Work::Start(_) => WorkKind::Start,
            Work::Announce { .. } => WorkKind::Announce,
            Work::Signal { .. } => WorkKind::Signal,
            Work::Kill(_) => WorkKind::Kill,
            Work::Remove(_) => WorkKind::Remove,
            Work::HoldImage(_) => WorkKind::HoldImage,
            Work::HoldModel(_) => WorkKind::HoldModel,
            Work::DropImage(_) => WorkKind::DropImage,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkKind {
    Start,
    Announce,
    Signal,
    Kill,
    Remove,
    HoldImage,
    HoldModel,
    DropImage,
}

impl WorkKind {
    pub fn as_str(self) -> &'static str {
        match self {
            WorkKind::Start => "start",
            WorkKind::Announce => "announce",
            WorkKind::Signal => "signal",
            WorkKind::Kill => "kill",
            WorkKind::Remove => "remove",
            WorkKind::HoldImage => "hold-image",
            WorkKind::HoldModel => "hold-model",
            WorkKind::DropImage => "drop-image",
        }
    }

    /// Kinds of one lane share its bound.
    fn lane(self) -> Lane {
        match self {
            WorkKind::Announce | WorkKind::Signal | WorkKind::Kill => Lane::Signals,
            WorkKind::Remove => Lane::Removals,
            WorkKind::Start => Lane::Starts,
            WorkKind::HoldImage | WorkKind::DropImage => Lane::Images,
            WorkKind::HoldModel => Lane::Models,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Signals,
    Removals,
    Starts,
    Images,
    Models,
}

impl Lane {
    /// containerd starts a runc for each of these; a burst must not make all of them slow. Images are
    /// unpacked by one core each; models share one connection.
    fn bound(self) -> usize {
        match self {
            Lane::Signals => 32,
            Lane::Removals => 8,
            Lane::Starts => 4,
            Lane::Images => 2,
            Lane::Models => 4,
        }
    }
}

/// Work that has ended.
#[derive(Debug)]
pub struct Done {
    pub subject: Subject,
    pub kind: WorkKind,
    pub outcome: Outcome,
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed {
        reason: String,
    },
    /// It may or may not have had its effect.
    Unknown {
        reason: String,
    },
}

pub struct Executor<M> {
    steps: Arc<Steps>,
    models: Arc<M>,
    tasks: JoinSet<Outcome>,
    under_way: BTreeMap<Subject, UnderWay>,
    subjects: HashMap<Id, Subject>,
}

struct UnderWay {
    kind: WorkKind,
    since: Instant,
    progress: Option<watch::Receiver<(u64, u64)>>,
    layout: Option<ManifestId>,
}

impl<M: Models> Executor<M> {
    pub fn new(steps: Arc<Steps>, models: Arc<M>) -> Self {
        Self {
            steps,
            models,
            tasks: JoinSet::new(),
            under_way: BTreeMap::new(),
            subjects: HashMap::new(),
        }
    }

    pub fn is_busy(&self, subject: &Subject) -> bool {
        self.under_way.contains_key(subject)
    }

    pub fn busy(&self) -> impl Iterator<Item = &Subject> {
        self.under_way.keys()
    }

    /// How far a fetch is.
    pub fn progress(&self, subject: &Subject) -> Option<(u64, u64)> {
        let progress = self.under_way.get(subject)?.progress.as_ref()?;
        Some(*progress.borrow())
    }

    /// Layouts that an import reads.
    pub fn layouts(&self) -> impl Iterator<Item = ManifestId> + '_ {
        self.under_way.values().filter_map(|work| work.layout)
    }

    /// Begins work, unless its subject is being worked on or its lane is full.
    pub fn offer(&mut self, work: Work) -> bool {
        let (subject, kind) = (work.subject(), work.kind());
        let lane = kind.lane();
        let same_lane = self.under_way.values().filter(|w| w.kind.lane() == lane);
        if self.is_busy(&subject) || same_lane.count() >= lane.bound() {
            return false;
        }
        let (progress, shown) = watch::channel((0, 0));
        let fetches = matches!(kind, WorkKind::HoldImage | WorkKind::HoldModel);
        let under_way = UnderWay {
            kind,
            since: Instant::now(),
            progress: fetches.then_some(shown),
            layout: match &work {
                Work::HoldImage(image) => image.origin.layout(),
                _ => None,
            },
        };
        let (steps, models) = (Arc::clone(&self.steps), Arc::clone(&self.models));
        let handle = self.tasks.spawn(carry_out(steps, models, work, progress));
        self.subjects.insert(handle.id(), subject.clone());
        self.under_way.insert(subject, under_way);
        true
    }

    /// The next work that ends; waits for ever while there is none. Cancel-safe.
    pub async fn next_done(&mut self) -> Done {
        loop {
            let Some(ended) = self.tasks.join_next_with_id().await else {
                std::future::pending::<()>().await;
                continue;
            };
            let (id, outcome) = match ended {
                Ok((id, outcome)) => (id, outcome),
                Err(error) => {
                    let reason = format!("the work was cut off: {error}");
                    (error.id(), Outcome::Unknown { reason })
                }
            };
            let subject = self.subjects.remove(&id);
            let found = subject.and_then(|subject| self.under_way.remove_entry(&subject));
            if let Some((subject, under_way)) = found {
                return Done {
                    subject,
                    kind: under_way.kind,
                    outcome,
                    took: under_way.since.elapsed(),
                };
            }
        }
    }
}

async fn carry_out<M: Models>(
    steps: Arc<Steps>,
    models: Arc<M>,
    work: Work,
    progress: Progress,
) -> Outcome {
    match work {
        Work::Start(order) => outcome(steps.start(&order).await),
        Work::Announce { replica, uid } => outcome(steps.announce(*replica, uid).await),
        Work::Signal { id, signal } => outcome(steps.signal(&id, &signal).await),
        Work::Kill(id) => outcome(steps.kill(&id).await),
        Work::Remove(id) => outcome(steps.remove(&id).await),
        Work::HoldImage(image) => hold_image(&steps, &*models, &image, progress).await,
        Work::HoldModel(manifest) => match models.fetch(manifest, progress).await {
            Ok(_) => Outcome::Done,
            Err(reason) => Outcome::Failed { reason },
        },
        Work::DropImage(reference) => outcome(
            steps
                .containerd
                .delete_image(&reference)
                .await
                .map_err(StepError::from),
        ),
    }
}

async fn hold_image<M: Models>(
    steps: &Steps,
    models: &M,
    image: &PlannedImage,
    progress: Progress,
) -> Outcome {
    let (containerd, instance) = (&steps.containerd, &steps.instance);
    let (verb, held) = match image.origin {
        ImageOrigin::Layout(layout) => {
            let layout = match models.fetch(layout, progress).await {
                Ok(layout) => layout,
                Err(reason) => return Outcome::Failed { reason },
            };
            let source = ImageSource::Layout(&layout);
            let held = containerd.bring_image(image, source, instance).await;
            ("import", held)
        }
        ImageOrigin::Registry => {
            let tally = Tally::new(image, progress);
            let source = ImageSource::Registry {
                puller: &steps.puller,
                tally: &tally,
            };
            let held = containerd.bring_image(image, source, instance).await;
            ("pull", held)
        }
    };
    match held {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed {
            reason: format!("{verb} image {}: {}", image.reference, Chain(&error)),
        },
    }
}

fn outcome(result: Result<(), StepError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => {
            let reason = Chain(&error).to_string();
            if error.outcome_unknown() {
                Outcome::Unknown { reason }
            } else {
                Outcome::Failed { reason }
            }
        }
    }
}
