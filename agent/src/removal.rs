//! Takes away every replica of this machine: what the package's removal calls, since a replica outlives
//! its agent and nobody would be left to stop it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use shared::ids::ReplicaId;

use crate::config::Config;
use crate::containerd::Containerd;
use crate::folder::Folders;
use crate::ledger::ReplicaRecord;
use crate::start;
use crate::steps::Steps;

/// A containerd that does not run answers at once; one that hangs must not hold up a package manager.
const CONNECT: Duration = Duration::from_secs(10);

/// Asks every replica to stop, gives it its grace, and clears what there is of it but its logs. Returns
/// how many there were; an error names those that are left.
pub async fn run(config: &Config) -> anyhow::Result<usize> {
    let folders = Folders::open(&config.run_dir, config.gateway_gid()?)?;
    let containerd = match connect(config).await {
        Ok(containerd) => containerd,
        // A machine that never was a node may have no containerd.
        Err(_) if folders.list()?.is_empty() => return Ok(0),
        Err(error) => return Err(error),
    };
    let steps = start::steps(config, containerd).await?;
    let (replicas, _) = steps.containerd.list_replicas(&steps.instance).await?;
    let ended = join_all(replicas.iter().map(|(id, record)| end(&steps, id, record))).await;
    let failures: Vec<String> = ended
        .into_iter()
        .filter_map(|ended| ended.err().map(|error| format!("{error:#}")))
        .collect();
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
    // What is left of replicas whose container somebody else removed.
    let mut left: BTreeSet<ReplicaId> = steps.folders.list()?.into_keys().collect();
    left.extend(steps.networks.list()?);
    for id in &left {
        steps.remove(id).await?;
    }
    Ok(replicas.len())
}

async fn connect(config: &Config) -> anyhow::Result<Containerd> {
    let connecting = Containerd::connect(
        &config.containerd,
        &config.containerd_namespace,
        &config.snapshotter,
    );
    let connected = tokio::time::timeout(CONNECT, connecting).await;
    let hangs = || format!("containerd at {} hangs", config.containerd.display());
    Ok(connected.with_context(hangs)??)
}

async fn end(steps: &Arc<Steps>, id: &ReplicaId, record: &ReplicaRecord) -> anyhow::Result<()> {
    let context = || format!("remove replica {id} of {}", record.endpoint);
    // One that cannot be asked is killed below.
    if steps.signal(id, &record.stop_signal).await.is_ok() {
        let grace = Duration::from_secs(record.stop_grace_seconds.into());
        let _ = steps.containerd.wait_task(id, grace).await;
    }
    steps.remove(id).await.with_context(context)
}
