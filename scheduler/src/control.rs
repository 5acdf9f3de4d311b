//! The one task that owns the core: reads what happened, decides, commits, then acts.
//!
//! What always holds: nothing that a decision led to (a plan, routes, an answer) leaves before the
//! decision's writes are on disk. A commit that fails ends the process: what memory holds is then no
//! longer what the store does, and only a restart makes them agree. A commit that was not begun for want
//! of room on the disk is tried until there is some.
//!
//! Commands that wait together are decided together and share one commit; the events among them share
//! one pass of the core, too: a thousand gateways that take new routes cost no thousand passes.

mod handle;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use quinn::Connection;
use rand::rngs::StdRng;
use scheduler_core::event::Level;
use scheduler_core::registry::{SessionRefusal, Shown};
use scheduler_core::store_op::Op;
use scheduler_core::{Core, Ctx, Effects, Event, Note};
use shared::ids::{Epoch, Role};
use shared::units::MonoTime;
use shared::wire::Peer;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::metrics::Metrics;
use crate::sessions::Sessions;
use crate::store::{CommitError, StoreHandle};

pub use handle::{Admitted, Handle, Newcomer, Refused, Stopping};
use handle::{Answer, Command};

/// Sessions and requests wait when the control task is this far behind.
const COMMANDS: usize = 1024;
/// At most this many commands share a commit: a larger round would make its first one wait.
const ROUND: usize = 256;
/// A disk that is full is looked at this often.
const COMMIT_AGAIN: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_secs(1);
/// How often gauges are renewed that are counted over all endpoints.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

pub type Context<'a> = Ctx<'a, StdRng>;

/// The clocks that decisions get.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    pub fn now(&self) -> MonoTime {
        MonoTime::from(self.origin.elapsed())
    }

    /// Zero for a clock set before 1970.
    pub fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }
}

pub struct Control {
    core: Core,
    store: StoreHandle,
    epoch: Epoch,
    sessions: Sessions,
    commands: mpsc::Receiver<Command>,
    clock: Clock,
    chance: StdRng,
    metrics: Metrics,
    last_count: Instant,
    /// The last event's number that may be shown.
    shown: watch::Sender<u64>,
}

/// What was decided together.
#[derive(Default)]
struct Round {
    /// Their writes are in `writes`.
    effects: Effects,
    /// What each decision writes.
    writes: Vec<Vec<Op>>,
    /// An event came in that no pass has looked at yet.
    pass_due: bool,
    answers: Vec<Answer>,
    /// Sessions that have just begun and hold nothing yet.
    greet: Vec<Peer>,
}

impl Round {
    fn add(&mut self, mut effects: Effects) {
        let writes = std::mem::take(&mut effects.writes);
        if !writes.is_empty() {
            self.writes.push(writes);
        }
        self.effects.merge(effects);
    }
}

/// The task's state and the handle to it. The core is at `epoch`, which the store has begun.
pub fn new(
    core: Core,
    store: StoreHandle,
    epoch: Epoch,
    clock: Clock,
    metrics: Metrics,
) -> (Control, Handle) {
    let (sender, commands) = mpsc::channel(COMMANDS);
    let (shown, events) = watch::channel(core.events().last_shown());
    let control = Control {
        core,
        store,
        epoch,
        sessions: Sessions::default(),
        commands,
        clock,
        chance: rand::make_rng(),
        metrics,
        last_count: Instant::now(),
        shown,
    };
    let handle = Handle {
        commands: sender,
        epoch,
        events,
    };
    (control, handle)
}

impl Control {
    pub async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = ticker.tick() => Command::Tick,
                command = self.commands.recv() => match command {
                    Some(command) => command,
                    None => return Ok(()),
                },
            };
            if matches!(first, Command::Tick) {
                daemon::notify::watchdog();
                self.count();
            }
            let mut round = Round::default();
            let mut next = Some(first);
            let mut taken = 0;
            while let Some(command) = next {
                if let Command::EpochSeen(seen) = command {
                    return self.step_over(seen).await;
                }
                self.apply(command, &mut round);
                taken += 1;
                next = (taken < ROUND)
                    .then(|| self.commands.try_recv().ok())
                    .flatten();
            }
            if round.pass_due {
                let effects = self.core.pass(&mut context(&self.clock, &mut self.chance));
                round.add(effects);
            }
            if !self.commit(&mut round, &cancel).await? {
                return Ok(());
            }
            self.act(round);
        }
    }

    fn take_in(&mut self, event: Event, round: &mut Round) {
        let mut ctx = context(&self.clock, &mut self.chance);
        let (effects, pass_due) = self.core.take_in(event, &mut ctx);
        round.add(effects);
        round.pass_due |= pass_due;
    }

    fn apply(&mut self, command: Command, round: &mut Round) {
        match command {
            Command::Decide(decide) => {
                let mut ctx = context(&self.clock, &mut self.chance);
                let (effects, answer) = decide(&mut self.core, &mut ctx);
                round.add(effects);
                round.answers.push(answer);
            }
            Command::Tick => self.take_in(Event::Tick, round),
            Command::Event(event) => self.take_in(*event, round),
            Command::Arrived(newcomer, answer) => {
                let Newcomer {
                    peer,
                    connection,
                    shown,
                    boot,
                    peer_address,
                    client_address,
                } = *newcomer;
                if let Err(refused) = self.admit(&peer, &shown, &boot, &connection) {
                    round
                        .answers
                        .push(Box::new(move || drop(answer.send(Err(refused)))));
                    return;
                }
                round.add(Effects {
                    writes: self.core.registry.learn(&peer.node, peer.role, shown),
                    ..Effects::default()
                });
                let node = peer.node.clone();
                let event = match peer.role {
                    Role::Agent => Event::AgentUp { node },
                    // The listener admits these two roles only.
                    Role::Gateway | Role::Scheduler => Event::GatewayUp {
                        node,
                        peer_address,
                        client_address,
                    },
                };
                let (id, outgoing) = self.sessions.open(peer.clone(), connection, boot);
                self.take_in(event, round);
                let admitted = Admitted { id, outgoing };
                round
                    .answers
                    .push(Box::new(move || drop(answer.send(Ok(admitted)))));
                round.greet.push(peer);
            }
            Command::Left(peer, id) => {
                if !self.sessions.ended(&peer, id) {
                    return;
                }
                let event = match peer.role {
                    Role::Agent => Event::AgentDown { node: peer.node },
                    Role::Gateway | Role::Scheduler => Event::GatewayDown { node: peer.node },
                };
                self.take_in(event, round);
            }
            Command::Gateway(node, answer) => drop(answer.send(self.sessions.gateway(&node))),
            // Taken out by the loop, which it ends.
            Command::EpochSeen(_) => {}
        }
    }

    /// Whether a newcomer may have a session. What people should know of a refusal is noted.
    fn admit(
        &mut self,
        peer: &Peer,
        shown: &Shown,
        boot: &str,
        connection: &Connection,
    ) -> Result<(), Refused> {
        let (node, now) = (&peer.node, self.clock.now());
        let from = connection.remote_address().ip();
        let admitted = self.core.registry.admit(node, peer.role, &shown.key_hash);
        if let Err(refusal) = admitted {
            if matches!(refusal, SessionRefusal::OtherKey { .. }) {
                let problem = format!("refused {from}: {refusal}");
                self.core.note_problem(node, problem, now);
            }
            return Err(refusal.into());
        }
        if let Some(other) = self.sessions.other_machine(peer, boot) {
            let peer = peer.clone();
            let refused = Refused::Copied { peer, other };
            let problem = format!("refused {from}: {refused}");
            self.core.note_problem(node, problem, now);
            return Err(refused);
        }
        Ok(())
    }

    /// Whether it is done; not when the scheduler is stopped while it waits. On a disk without room
    /// the commit waits: whoever asked waits with it, gateways and agents go on with what they have.
    async fn commit(&self, round: &mut Round, cancel: &CancellationToken) -> anyhow::Result<bool> {
        let writes = std::mem::take(&mut round.writes);
        if writes.is_empty() {
            return Ok(true);
        }
        let begun = Instant::now();
        let records: usize = writes.iter().map(Vec::len).sum();
        let mut said = false;
        let revision = loop {
            match self.store.commit(writes.clone(), self.epoch).await? {
                Ok(revision) => break revision,
                Err(CommitError::NoRoom(short))
                    if writes.iter().flatten().all(Op::is_expendable) =>
                {
                    // What happened and what was learned is not worth holding decisions up: it is in
                    // memory, and a restart does not know it.
                    debug!(problem = %short, "events and what was learned were not written");
                    return Ok(true);
                }
                Err(CommitError::NoRoom(short)) => {
                    if !said {
                        error!(problem = %short, "nothing can be decided until there is room");
                    }
                    said = true;
                }
                Err(error) => return Err(error).context("commit what was decided"),
            }
            daemon::notify::watchdog();
            tokio::select! {
                () = cancel.cancelled() => return Ok(false),
                () = tokio::time::sleep(COMMIT_AGAIN) => {}
            }
        };
        if said {
            info!("there is room again, going on");
        }
        let took = begun.elapsed();
        self.metrics.commit_seconds.observe(took.as_secs_f64());
        debug!(%revision, records, ?took, "committed");
        Ok(true)
    }

    /// Sends and answers what has been committed.
    fn act(&mut self, round: Round) {
        let Round {
            effects,
            answers,
            greet,
            // Committed, and done.
            writes: _,
            pass_due: _,
        } = round;
        for plan in &effects.plans {
            self.sessions.send_plan(plan);
        }
        if let Some(routes) = &effects.routes {
            self.sessions.send_routes(routes);
        }
        for peer in greet {
            self.greet(&peer, &effects);
        }
        for (peer, code, reason) in &effects.close {
            self.sessions.close(peer, *code, reason);
        }
        for note in &effects.notes {
            log(note);
        }
        for answer in answers {
            answer();
        }
        let shown = self.core.events().last_shown();
        self.shown.send_if_modified(|last| {
            let news = *last != shown;
            *last = shown;
            news
        });
    }

    /// What a session needs that has just begun, unless it has just been sent.
    fn greet(&mut self, peer: &Peer, sent: &Effects) {
        match peer.role {
            Role::Agent => {
                let fresh = sent.plans.iter().any(|plan| plan.node == peer.node);
                if let Some(plan) = self.core.plan_for(&peer.node).filter(|_| !fresh) {
                    self.sessions.send_plan(&plan);
                }
            }
            Role::Gateway | Role::Scheduler => {
                if sent.routes.is_none() {
                    let routes = self.core.routes();
                    self.sessions.send_routes_to(peer, &routes);
                }
            }
        }
    }

    /// Persists an epoch above the one seen, so that the next process starts above it.
    async fn step_over(&self, seen: Epoch) -> anyhow::Result<()> {
        let begun = self.store.begin_epoch(seen).await?;
        let begun = begun.context("begin a higher epoch")?;
        anyhow::bail!(
            "a node has seen epoch {seen}, this process began {}: the store is an older copy; \
             epoch {begun} is kept, restart to go on above it",
            self.epoch
        )
    }

    fn count(&mut self) {
        self.metrics
            .set_sessions(Role::Agent, self.sessions.count(Role::Agent));
        self.metrics
            .set_sessions(Role::Gateway, self.sessions.count(Role::Gateway));
        if self.last_count.elapsed() >= COUNT_INTERVAL {
            self.last_count = Instant::now();
            self.metrics.count_core(&self.core.census());
        }
    }
}

fn context<'a>(clock: &Clock, chance: &'a mut StdRng) -> Context<'a> {
    Ctx {
        now: clock.now(),
        unix_ms: clock.unix_ms(),
        rng: chance,
    }
}

fn log(note: &Note) {
    let endpoint = note.endpoint.as_ref().map(tracing::field::display);
    let replica = note.replica.as_ref().map(tracing::field::display);
    let node = note.node.as_ref().map(tracing::field::display);
    match note.level {
        Level::Info => info!(endpoint, replica, node, "{}", note.text),
        Level::Warn => warn!(endpoint, replica, node, "{}", note.text),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prometheus_client::registry::Registry as MetricsRegistry;
    use scheduler_core::Settings;
    use scheduler_core::store_op::Entries;
    use shared::ids::ClusterId;

    use super::*;
    use crate::store::{self, MemoryStore, Store};

    fn control_over(mut store: MemoryStore) -> (Control, Handle) {
        let epoch = store.begin_epoch(Epoch(0)).expect("begins");
        let clock = Clock::start();
        let settings = Settings::new(ClusterId::from_bits(1), BTreeMap::new());
        let core = Core::restore(&Entries::new(), settings, epoch, clock.now()).expect("empty");
        let (store, _) = store::spawn(store).expect("a thread");
        let metrics = Metrics::register(&mut MetricsRegistry::default());
        new(core, store, epoch, clock, metrics)
    }

    fn write(key: &str) -> Effects {
        let put = Op::Put {
            key: key.into(),
            value: b"{}".to_vec(),
        };
        Effects {
            writes: vec![put],
            ..Effects::default()
        }
    }

    #[tokio::test]
    async fn an_answer_is_given_once_its_writes_are_on_disk() {
        let (control, handle) = control_over(MemoryStore::new());
        let cancel = CancellationToken::new();
        let running = control.run(cancel.clone());
        let asking = async {
            let answer = handle.decide(|_, _| (7, write("a/1"))).await;
            cancel.cancel();
            answer
        };
        let (ended, answer) = tokio::join!(running, asking);
        assert_eq!(answer, Ok(7));
        ended.expect("ends because it was told to");
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_without_room_waits_and_is_answered_once_there_is_some() {
        let mut store = MemoryStore::new();
        store.lack_room_for(3);
        let (control, handle) = control_over(store);
        let cancel = CancellationToken::new();
        let running = control.run(cancel.clone());
        let asking = async {
            let answer = handle.decide(|_, _| (7, write("a/1"))).await;
            cancel.cancel();
            answer
        };
        let (ended, answer) = tokio::join!(running, asking);
        assert_eq!(answer, Ok(7));
        ended.expect("ends because it was told to");
    }

    #[tokio::test]
    async fn a_commit_that_fails_answers_nobody_and_ends_the_task() {
        let mut store = MemoryStore::new();
        store.fail_next_commit();
        let (control, handle) = control_over(store);
        let running = control.run(CancellationToken::new());
        let (ended, answer) = tokio::join!(running, handle.decide(|_, _| (7, write("a/1"))));
        assert_eq!(answer, Err(Stopping));
        let error = format!("{:#}", ended.expect_err("ends"));
        assert!(error.contains("commit what was decided"), "{error}");
    }
}
