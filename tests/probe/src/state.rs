//! What a probe knows of itself while it serves: who it is, and what it counts.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use crate::settings::Settings;

/// What answers say about where they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub replica: Option<String>,
    pub model_version: Option<String>,
}

impl Identity {
    /// The replica from `STOKEHOLD_REPLICA`, the version from the model's file `VERSION`.
    pub fn of_process(model: Option<&Path>) -> Self {
        let version = model.and_then(|dir| std::fs::read_to_string(dir.join("VERSION")).ok());
        Self {
            replica: std::env::var("STOKEHOLD_REPLICA").ok(),
            model_version: version.map(|text| text.trim().to_owned()),
        }
    }
}

/// Counted over `/invocations` and `/v1/chat/completions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub requests: u64,
    pub in_flight: u32,
    /// The most that were ever in flight at once.
    pub max_in_flight: u32,
    /// Requests whose client went away before the whole answer.
    pub cancelled: u64,
}

#[derive(Debug)]
pub struct Probe {
    pub(crate) settings: Settings,
    pub(crate) identity: Identity,
    started: Instant,
    requests: AtomicU64,
    in_flight: AtomicU32,
    max_in_flight: AtomicU32,
    cancelled: AtomicU64,
    exit: watch::Sender<Option<u8>>,
    /// `memory_mib`, held.
    _memory: Vec<u8>,
}

impl Probe {
    /// Takes the memory that the settings ask for; the start delay runs from here.
    pub fn new(settings: Settings, identity: Identity) -> Arc<Self> {
        Arc::new(Self {
            _memory: vec![1; settings.memory_mib << 20],
            settings,
            identity,
            started: Instant::now(),
            requests: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            max_in_flight: AtomicU32::new(0),
            cancelled: AtomicU64::new(0),
            exit: watch::Sender::new(None),
        })
    }

    pub fn stats(&self) -> Stats {
        Stats {
            requests: self.requests.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            max_in_flight: self.max_in_flight.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.settings.never_healthy
            && self.started.elapsed() >= Duration::from_millis(self.settings.start_delay_ms)
    }

    /// Ends `serve` with this code, at once, and never returns to the request that asked for it.
    pub(crate) async fn exit(&self, code: u8) -> ! {
        self.exit.send_replace(Some(code));
        std::future::pending().await
    }

    pub(crate) async fn exit_requested(&self) -> u8 {
        let mut exit = self.exit.subscribe();
        let code = exit
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|code| *code);
        match code {
            Some(code) => code,
            None => std::future::pending().await, // the sender is gone, but it is ours
        }
    }
}

/// One request being worked on. Dropped before [`InFlight::answered`], it counts as cancelled.
#[derive(Debug)]
pub(crate) struct InFlight {
    probe: Arc<Probe>,
    /// Which request since the start it is, from 1.
    pub(crate) number: u64,
    /// How many were in flight when it came, itself included.
    pub(crate) concurrency: u32,
    answered: bool,
}

impl InFlight {
    pub(crate) fn begin(probe: Arc<Probe>) -> Self {
        let number = probe.requests.fetch_add(1, Relaxed) + 1;
        let concurrency = probe.in_flight.fetch_add(1, Relaxed) + 1;
        probe.max_in_flight.fetch_max(concurrency, Relaxed);
        Self {
            probe,
            number,
            concurrency,
            answered: false,
        }
    }

    pub(crate) fn probe(&self) -> &Arc<Probe> {
        &self.probe
    }

    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.probe.in_flight.fetch_sub(1, Relaxed);
        if !self.answered {
            self.probe.cancelled.fetch_add(1, Relaxed);
        }
    }
}
