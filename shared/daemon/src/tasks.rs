//! Named tasks that live as long as the daemon.
//!
//! An unexpected end of one ends the process with an error, so that the supervisor restarts it;
//! shutdown cancels all, waits a limited time, then names who was late.

use std::collections::HashMap;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

pub struct Tasks {
    cancel: CancellationToken,
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    #[error("task {name} ended unexpectedly")]
    Ended { name: &'static str },
    #[error("task {name} failed: {reason}")]
    Failed { name: &'static str, reason: String },
    #[error("tasks did not stop within {grace:?}: {}", late.join(", "))]
    Late {
        grace: Duration,
        late: Vec<&'static str>,
    },
}

impl Tasks {
    /// `cancel` stops all tasks; each gets a clone of it from its creator.
    pub fn new(cancel: CancellationToken) -> Self {
        Self {
            cancel,
            set: JoinSet::new(),
            names: HashMap::new(),
        }
    }

    pub fn spawn<F>(&mut self, name: &'static str, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let handle = self.set.spawn(future);
        self.names.insert(handle.id(), name);
    }

    /// Waits for the end: of a cancelled daemon, all tasks stopped in time; of a failed one, the
    /// first task that ended before it was told to.
    pub async fn join(mut self, grace: Duration) -> Result<(), TasksError> {
        let mut first = None;
        while !self.cancel.is_cancelled() {
            let ended = tokio::select! {
                () = self.cancel.cancelled() => break,
                ended = self.set.join_next_with_id() => ended,
            };
            let Some(ended) = ended else { break };
            let failure = self.failure_of(ended);
            // A task may see the cancellation before this loop does.
            if !self.cancel.is_cancelled() || matches!(failure, TasksError::Failed { .. }) {
                first = Some(failure);
            }
            self.cancel.cancel();
        }
        let rest = self.drain(grace).await;
        first.map_or(rest, Err)
    }

    async fn drain(&mut self, grace: Duration) -> Result<(), TasksError> {
        let deadline = tokio::time::Instant::now() + grace;
        let mut result = Ok(());
        loop {
            match tokio::time::timeout_at(deadline, self.set.join_next_with_id()).await {
                Ok(None) => return result,
                Ok(Some(ended)) => match self.failure_of(ended) {
                    TasksError::Ended { name } => debug!(task = name, "task stopped"),
                    failure => result = result.and(Err(failure)),
                },
                Err(_) => {
                    let mut late: Vec<_> = self.names.values().copied().collect();
                    late.sort_unstable();
                    self.set.abort_all();
                    return Err(TasksError::Late { grace, late });
                }
            }
        }
    }

    fn failure_of(
        &mut self,
        ended: Result<(Id, anyhow::Result<()>), tokio::task::JoinError>,
    ) -> TasksError {
        let (id, reason) = match ended {
            Ok((id, Ok(()))) => (id, None),
            Ok((id, Err(error))) => (id, Some(format!("{error:#}"))),
            Err(error) => (error.id(), Some(error.to_string())),
        };
        let name = self.names.remove(&id).unwrap_or("unnamed");
        match reason {
            None => TasksError::Ended { name },
            Some(reason) => TasksError::Failed { name, reason },
        }
    }
}

/// A task that turns SIGTERM or SIGINT into cancellation.
pub async fn shutdown_signal(cancel: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = cancel.cancelled() => return Ok(()),
    };
    info!(signal = name, "stopping");
    cancel.cancel();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_by_itself_ends_the_others_and_is_named() {
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        let other = cancel.clone();
        tasks.spawn("waits", async move {
            other.cancelled().await;
            Ok(())
        });
        tasks.spawn("fails", async { anyhow::bail!("disk full") });
        let error = tasks
            .join(Duration::from_secs(1))
            .await
            .expect_err("failed");
        assert_eq!(error.to_string(), "task fails failed: disk full");
        assert!(cancel.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_is_named_after_the_grace() {
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        tasks.spawn("stubborn", std::future::pending());
        cancel.cancel();
        let error = tasks.join(Duration::from_secs(1)).await.expect_err("late");
        assert!(matches!(error, TasksError::Late { late, .. } if late == ["stubborn"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_daemon_whose_tasks_stop_in_time_ends_well() {
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        let other = cancel.clone();
        tasks.spawn("waits", async move {
            other.cancelled().await;
            Ok(())
        });
        cancel.cancel();
        assert!(tasks.join(Duration::from_secs(1)).await.is_ok());
    }
}
