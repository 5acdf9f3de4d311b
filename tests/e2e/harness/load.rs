//! A loop of requests beside what a test does, with every failure kept.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::cluster::{Cluster, send};

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// `workers` clients, each sending its next request `pause` after the last answer.
    pub(crate) fn start(
        cluster: &Cluster,
        url: &str,
        body: Value,
        workers: u32,
        pause: Duration,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let (client, token) = (cluster.client(), cluster.token());
        let worker = |_| {
            let (stop, sent, failures) = (stop.clone(), sent.clone(), failures.clone());
            let (client, token) = (client.clone(), token.clone());
            let (url, body) = (url.to_owned(), body.clone());
            cluster.runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let outcome = send(client.post(&url).bearer_auth(&token).json(&body)).await;
                    sent.fetch_add(1, Ordering::Relaxed);
                    let failure = match outcome {
                        Ok(answer) if answer.status == 200 => None,
                        Ok(answer) => Some(format!(
                            "{}: {}",
                            answer.status,
                            String::from_utf8_lossy(&answer.body)
                        )),
                        Err(error) => Some(format!("{error:?}")),
                    };
                    if let Some(failure) = failure {
                        failures.lock().expect("not poisoned").push(failure);
                    }
                    tokio::time::sleep(pause).await;
                }
            })
        };
        let workers = (0..workers).map(worker).collect();
        Self {
            stop,
            sent,
            failures,
            workers,
        }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until `more` requests were answered from now on.
    pub(crate) fn wait_for(&self, more: u64) {
        let goal = self.sent() + more;
        super::eventually("requests go on", || (self.sent() >= goal).then_some(()));
    }

    /// Stops; returns how many were sent and what failed.
    pub(crate) fn finish(self, cluster: &Cluster) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            cluster.runtime.block_on(worker).expect("worker");
        }
        let failures = std::mem::take(&mut *self.failures.lock().expect("not poisoned"));
        (self.sent.load(Ordering::Relaxed), failures)
    }
}
