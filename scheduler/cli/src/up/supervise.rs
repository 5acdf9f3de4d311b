//! The supervisor: starts an instance, keeps it running, takes it down at a signal.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::UpArgs;
use super::down;
use super::handover;
use super::layout::Layout;
use super::plan::{Containerd, Plan};
use super::prerequisites;
use super::processes::Process;
use super::service::Happened;
use super::start::{self, Services};
use super::state::{self, Phase, Record, VERSION};
use super::summary;
use crate::exit::Stop;
use crate::output::Output;

const PERIOD: Duration = Duration::from_millis(200);

/// Logs are measured once in so many periods.
const LOGS_EVERY: u32 = 300;

pub(super) async fn run(layout: &Layout, args: &UpArgs, output: &Output) -> anyhow::Result<()> {
    if args.supervise {
        // No terminal: closing it must not reach us.
        nix::unistd::setsid().context("leave the session")?;
    }
    let plan = Plan::new(layout, args)?;
    let Some(_lock) = state::lock(layout)? else {
        return Err(Stop::Usage(format!(
            "another `stokehold up` with {} is running",
            layout.data.display()
        ))
        .into());
    };
    let mut signals = Signals::new()?;
    // What a killed supervisor left: its daemons go, its replicas stay and are adopted.
    let stale = down::stop_daemons(layout);
    if !stale.is_empty() {
        output.note(format!(
            "stopped what was left running: {}",
            stale.join(", ")
        ));
    }
    require(&plan)?;
    start::prepare(&plan)?;

    let mut instance = Instance {
        record: record(&plan)?,
        services: start::services(&plan),
        plan,
    };
    instance.record.save(layout)?;
    let outcome = instance.live(args, &mut signals, output).await;
    if let Err(error) = &outcome {
        instance.enter(Phase::Failed, &format!("{error:#}"))?;
    } else {
        instance.enter(Phase::Stopping, "")?;
    }
    instance.stop(output).await?;
    if outcome.is_ok() {
        instance.enter(Phase::Stopped, "")?;
        output.note(format!(
            "stokehold is down; models and endpoints are kept in {0}: `sudo stokehold up --data \
             {0}` goes on with them, `sudo stokehold down --data {0}` removes them",
            layout.data.display()
        ));
    }
    outcome
}

/// What must be there before anything is made or started.
pub(super) fn require(plan: &Plan) -> Result<(), Stop> {
    let missing = prerequisites::check(plan);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Stop::Usage(format!(
        "cannot start:\n  {}",
        missing.join("\n  ")
    )))
}

struct Instance {
    plan: Plan,
    services: Services,
    record: Record,
}

impl Instance {
    /// Until a signal, or until the start fails.
    async fn live(
        &mut self,
        args: &UpArgs,
        signals: &mut Signals,
        output: &Output,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        tokio::select! {
            ready = self.start(started + args.timeout, output) => ready?,
            () = signals.next() => return Ok(()),
        }
        let user = handover::invoking_user();
        self.record.user = user.as_ref().map(|user| user.uid.as_raw());
        let given = handover::give(&self.plan, user.as_ref());
        let warning = given.err().map_or_else(String::new, |error| {
            format!("the context {} was not written: {error:#}", super::CONTEXT)
        });
        if !warning.is_empty() {
            output.warn(&warning);
        }
        // Whoever waits in the foreground of a detached start reads it there.
        self.enter(Phase::Ready, &warning)?;
        if !args.supervise {
            summary::show(&self.plan.layout, &self.record, output)?;
            output.note("Ctrl-C stops it and keeps its data");
        }
        self.supervise(signals, output).await
    }

    async fn start(&mut self, deadline: Instant, output: &Output) -> anyhow::Result<()> {
        let progress = output.spinner();
        let (plan, record) = (&self.plan, &mut self.record);
        start::start(plan, &mut self.services, deadline, |step| {
            progress.line(step);
            record.message = step.to_owned();
            record.save(&plan.layout)
        })
        .await
    }

    async fn supervise(&mut self, signals: &mut Signals, output: &Output) -> anyhow::Result<()> {
        let mut ticker = tokio::time::interval(PERIOD);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut periods = 0u32;
        loop {
            tokio::select! {
                () = signals.next() => return Ok(()),
                _ = ticker.tick() => {}
            }
            if self.tick(output) {
                // A full disk must not end the supervisor: the daemons serve on.
                if let Err(error) = self.enter(Phase::Ready, "") {
                    output.warn(format!("{error:#}"));
                }
            }
            periods = periods.wrapping_add(1);
            if periods.is_multiple_of(LOGS_EVERY) {
                self.cap_logs(output);
            }
        }
    }

    /// Returns whether something changed.
    fn tick(&mut self, output: &Output) -> bool {
        let mut changed = false;
        for service in &mut self.services.all {
            match service.tick(Instant::now()) {
                Happened::Nothing => continue,
                Happened::Ended { why, again_in } => output.warn(format!(
                    "{} ended with {why}; it is started again in {:.1} s (log: {})",
                    service.name(),
                    again_in.as_secs_f64(),
                    service.log().display()
                )),
                Happened::Started => output.note(format!("{} is started again", service.name())),
                Happened::NotStarted { why } => {
                    output.warn(format!("{} cannot be started: {why}", service.name()));
                }
            }
            changed = true;
        }
        changed
    }

    fn cap_logs(&self, output: &Output) {
        for service in &self.services.all {
            if let Err(error) = service.cap_log() {
                output.warn(format!("log {}: {error}", service.log().display()));
            }
        }
    }

    fn enter(&mut self, phase: Phase, message: &str) -> anyhow::Result<()> {
        self.record.phase = phase;
        self.record.message = message.to_owned();
        self.record.processes = self
            .services
            .all
            .iter()
            .filter_map(|service| Some((service.name().to_owned(), service.process()?)))
            .collect();
        self.record.save(&self.plan.layout)
    }

    /// Gateway first, while the replicas that it waits for live; containerd last, to end them.
    async fn stop(&mut self, output: &Output) -> anyhow::Result<()> {
        for name in ["gateway", "agent", "scheduler"] {
            if let Some(service) = self.services.get(name) {
                tokio::task::block_in_place(|| service.stop());
            }
        }
        let socket = self.plan.containerd_socket();
        down::end_containers(&self.plan.layout, &self.record, &socket).await;
        if let Some(service) = self.services.get("containerd") {
            tokio::task::block_in_place(|| service.stop());
        }
        let left = tokio::task::block_in_place(|| down::scrub(&self.plan.layout));
        for problem in &left {
            output.warn(problem);
        }
        Ok(())
    }
}

fn record(plan: &Plan) -> anyhow::Result<Record> {
    let me = i32::try_from(std::process::id())?;
    let earlier = Record::load(&plan.layout);
    Ok(Record {
        version: VERSION,
        phase: Phase::Starting,
        message: String::new(),
        supervisor: Process::of(me).context("read /proc: is it mounted?")?,
        processes: BTreeMap::new(),
        node: plan.node.to_string(),
        server: plan.server(),
        gateway: plan.gateway(),
        external_containerd: match &plan.containerd {
            Containerd::Private { .. } => None,
            Containerd::External { socket } => Some(socket.clone()),
        },
        namespace: plan.namespace(),
        run_dir: plan.layout.replicas(),
        user: earlier.and_then(|earlier| earlier.user),
    })
}

/// Whatever means "stop": Ctrl-C, `down`, a closed terminal.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Cancel-safe.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
