//! Sends what the schedule says, when it says so. With [`super::scale`] the impure part.
//!
//! ```text
//! pacer (thread) ──due──► drive ──one task a request──► drive ──► tally
//! ```
//!
//! The pacer has a thread of its own, since the runtime's timers are no finer than a millisecond. When
//! it is late, nothing is lost: what is due carries its intended time, from which latency is measured.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use reqwest::{Request, Response};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::outcome::{Done, Outcome, said};
use super::scale::Scale;
use super::schedule::Plan;
use super::tally::{Recent, Tally};

/// Due and not yet taken, while the runtime is busy. When it is full the pacer waits; what comes later
/// keeps its intended time.
const DUE_QUEUE: usize = 4096;
/// After Ctrl-C, for what is in flight; a second Ctrl-C ends it at once.
const GRACE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(1);
/// Of the body of an answer that is no success.
const SAID_BYTES: usize = 4096;

pub(super) struct Drive {
    pub(super) plan: Plan,
    pub(super) seed: u64,
    pub(super) max_in_flight: usize,
    pub(super) http: reqwest::Client,
    /// The same each time.
    pub(super) request: Request,
    pub(super) begun: Instant,
}

/// What is shown each second.
pub(super) struct Look {
    pub(super) now: Duration,
    pub(super) since: Duration,
    pub(super) recent: Recent,
    pub(super) in_flight: usize,
    pub(super) scale: Option<Scale>,
}

pub(super) struct Ended {
    /// When sending ended, since the start.
    pub(super) sent_until: Duration,
    pub(super) interrupted: bool,
    pub(super) scale: Vec<Scale>,
}

/// Which part of its life a load is in.
enum Stage {
    Sending,
    /// Everything was sent that will be; what is in flight ends by its time-out.
    Draining {
        sent_until: Duration,
    },
    /// The same, but not beyond `until`.
    Leaving {
        sent_until: Duration,
        until: Instant,
    },
}

impl Drive {
    /// Runs the whole load. `scales` brings the endpoint's scale as it is seen.
    pub(super) async fn run(
        &self,
        tally: &mut Tally,
        mut scales: mpsc::Receiver<Option<Scale>>,
        mut show: impl FnMut(Look, &Tally),
    ) -> std::io::Result<Ended> {
        let mut interrupt: Signal = signal(SignalKind::interrupt())?;
        let mut due = self.pace()?;
        let mut looks = tokio::time::interval_at(self.begun + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut under_way: JoinSet<Done> = JoinSet::new();
        let (mut scale, mut latest) = (Vec::new(), None);
        let mut looked = Duration::ZERO;
        let mut stage = Stage::Sending;
        loop {
            let sending = matches!(stage, Stage::Sending);
            if !sending && under_way.is_empty() {
                break;
            }
            let until = match stage {
                Stage::Sending | Stage::Draining { .. } => None,
                Stage::Leaving { until, .. } => Some(until),
            };
            tokio::select! {
                next = due.recv(), if sending => match next {
                    Some(intended) => {
                        let fits = under_way.len() < self.max_in_flight;
                        tally.due(intended, fits);
                        if fits {
                            under_way.spawn(self.send(intended));
                        }
                    }
                    None => stage = Stage::Draining { sent_until: self.plan.length() },
                },
                Some(ended) = under_way.join_next() => {
                    tally.done(&ended.expect("a request's task neither panics nor is cancelled"));
                }
                Some(seen) = scales.recv() => {
                    latest = seen;
                    scale.extend(seen);
                }
                _ = looks.tick() => {
                    let now = self.begun.elapsed();
                    let look = Look {
                        now,
                        since: now.saturating_sub(looked),
                        recent: tally.look(now),
                        in_flight: under_way.len(),
                        scale: latest,
                    };
                    looked = now;
                    show(look, tally);
                }
                _ = interrupt.recv() => match stage {
                    Stage::Leaving { .. } => break,
                    Stage::Sending | Stage::Draining { .. } => {
                        due.close();
                        let sent_until = self.begun.elapsed().min(self.plan.length());
                        stage = Stage::Leaving { sent_until, until: Instant::now() + GRACE };
                    }
                },
                () = tokio::time::sleep_until(until.unwrap_or(self.begun)), if until.is_some() => break,
            }
        }
        tally.finish();
        let (sent_until, interrupted) = match stage {
            Stage::Sending => (self.plan.length(), false),
            Stage::Draining { sent_until } => (sent_until, false),
            Stage::Leaving { sent_until, .. } => (sent_until, true),
        };
        Ok(Ended {
            sent_until,
            interrupted,
            scale,
        })
    }

    /// The thread that tells what is due. It ends with the plan, or when nobody listens.
    fn pace(&self) -> std::io::Result<mpsc::Receiver<Duration>> {
        let (tell, due) = mpsc::channel(DUE_QUEUE);
        let (plan, begun) = (self.plan, self.begun.into_std());
        let rng = StdRng::seed_from_u64(self.seed);
        let wait_until = move |at: Duration| {
            let wait = at.saturating_sub(begun.elapsed());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
        };
        std::thread::Builder::new()
            .name("pacer".into())
            .spawn(move || {
                for intended in plan.sends(rng) {
                    wait_until(intended);
                    if tell.blocking_send(intended).is_err() {
                        return;
                    }
                }
                // The load is over when its time is, not with its last request.
                wait_until(plan.length());
            })?;
        Ok(due)
    }

    fn send(&self, intended: Duration) -> impl Future<Output = Done> + use<> {
        let request = self.request.try_clone();
        let request = request.expect("the body is in memory, which can be cloned");
        let (http, begun) = (self.http.clone(), self.begun);
        async move {
            let sent = begun.elapsed();
            let (outcome, said) = match http.execute(request).await {
                Ok(response) => read(response).await,
                Err(error) => failure(error),
            };
            Done {
                intended,
                sent,
                ended: begun.elapsed(),
                outcome,
                said,
            }
        }
    }
}

/// Reads the answer to its end: a request takes as long as its answer does.
async fn read(mut response: Response) -> (Outcome, Option<String>) {
    let outcome = Outcome::Status(response.status().as_u16());
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(piece)) if !outcome.is_success() => {
                let room = SAID_BYTES.saturating_sub(body.len()).min(piece.len());
                body.extend_from_slice(&piece[..room]);
            }
            Ok(Some(_)) => {}
            Ok(None) if outcome.is_success() => return (outcome, None),
            Ok(None) => return (outcome, said(&body)),
            Err(error) => return failure(error),
        }
    }
}

fn failure(error: reqwest::Error) -> (Outcome, Option<String>) {
    let outcome = Outcome::of_error(&error);
    // The URL is known.
    let error = anyhow::Error::from(error.without_url());
    (outcome, said(format!("{error:#}").as_bytes()))
}
