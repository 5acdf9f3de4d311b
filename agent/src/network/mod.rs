//! Interfaces for replicas that need more than loopback: those that listen on TCP, and those that may
//! connect to something of themselves.
//!
//! ```text
//! attach: record -> bridge -> namespace -> plugins' ADD -> record -> isolated port -> rules
//! detach: plugins' DEL -> namespace -> record -> rules (-> bridge and tables, with the last replica)
//! ```
//!
//! What always holds: a process never runs in a namespace whose rules are not in the kernel; whatever
//! is made was recorded before, so that an agent that was killed at any line undoes it by the record,
//! the namespace or the lease that it finds. Rules are a pure function of the records, and are put
//! back when somebody takes them away.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`conflist`] | which plugins, with which configuration (pure) |
//! | [`plugins`], [`result`] | calls them; reads what they answer (pure) |
//! | [`attachments`] | what was made, kept over restarts |
//! | [`netns`] | network namespaces that outlive the agent |
//! | [`rules`] | the nftables script (pure) |
//! | [`kernel`] | bridge and tables, by `ip` and `nft` |
//! | [`leases`] | addresses that nobody gives back |
//! | [`program`] | runs a program for a limited time |

pub mod attachments;
pub mod conflist;
pub mod kernel;
pub mod leases;
pub mod netns;
pub mod plugins;
pub mod program;
pub mod result;
pub mod rules;

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use daemon::telemetry::Chain;
use shared::ids::ReplicaId;
use shared::plan::PlannedReplica;
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use attachments::{Attachment, Attachments, Made};
use conflist::{Conflist, ConflistError, MAX_CONFLIST_BYTES, Subnet};
use kernel::KernelError;
use netns::Namespaces;
use plugins::{PluginError, Plugins, Target};
use rules::{Guarded, Ruleset};

/// Between looks whether the rules are still there.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// What systemd-resolved asks itself, where `/etc/resolv.conf` names only its stub on loopback.
const RESOLV_CONFS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// libc reads no more.
const MAX_RESOLVERS: usize = 3;

/// What `agent.toml` says, and where things are.
#[derive(Clone, Debug)]
pub struct Options {
    pub cni_bin_dirs: Vec<PathBuf>,
    pub bridge: String,
    pub subnet: Subnet,
    pub conflist: Option<PathBuf>,
    pub resolvers: Option<Vec<IpAddr>>,
    pub gateway_gid: u32,
    pub instance: String,
    /// For records and leases.
    pub state_dir: PathBuf,
    /// For namespaces; a reboot must empty it.
    pub netns_dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("network.conflist {} of agent.toml cannot be used", path.display())]
    Conflist {
        path: PathBuf,
        #[source]
        source: ConflistError,
    },
    #[error(
        "the node names no resolver that a replica could ask (those on loopback are not for it): \
         set network.resolvers in agent.toml"
    )]
    NoResolvers,
    #[error(
        "the plugins of network {network:?} made no interface with an address whose other end is on \
         this node, so that nothing would stand between the replica and others: use bridge or ptp"
    )]
    Unguarded { network: String },
    #[error("no address of its is known: the record of its network is gone, so remove the replica")]
    NoAddress,
    #[error("the work was cut off: {0}")]
    CutOff(String),
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_owned();
    move |source| NetworkError::File {
        operation,
        path,
        source,
    }
}

/// What a container is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub netns: PathBuf,
    pub resolv_conf: Option<PathBuf>,
}

/// What [`Networks::refresh`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    Unchanged,
    Changed,
    /// Somebody else had changed them.
    Restored,
}

pub struct Networks {
    options: Options,
    plugins: Plugins,
    namespaces: Namespaces,
    attachments: Attachments,
    /// Bridge and tables are changed by one at a time.
    installed: Mutex<Option<Installed>>,
}

/// The script that was applied, and how the kernel showed it right after.
struct Installed {
    script: String,
    listing: String,
}

impl Networks {
    /// Takes over what there is, and takes away leases that nobody will give back. Waits.
    pub fn open(options: Options) -> Result<Self, NetworkError> {
        let records = options.state_dir.join("replicas");
        let opened = Attachments::open(&records);
        let (attachments, broken) = opened.map_err(failed("read", &records))?;
        for (path, why) in broken {
            warn!(path = %path.display(), error = why, "record of a replica's network was broken and is removed");
        }
        let netns_dir = &options.netns_dir;
        let namespaces = Namespaces::open(netns_dir.clone());
        let namespaces = namespaces.map_err(failed("make folder", netns_dir))?;
        let networks = Self {
            plugins: Plugins::new(options.cni_bin_dirs.clone()),
            namespaces,
            attachments,
            installed: Mutex::new(None),
            options,
        };
        networks.clean_leases()?;
        Ok(networks)
    }

    fn clean_leases(&self) -> Result<(), NetworkError> {
        let known: BTreeSet<ReplicaId> = self.attachments.ids().into_iter().collect();
        let prefix = self.container_prefix();
        let is_stray = |container: &str| {
            let id = container.strip_prefix(&prefix);
            id.and_then(|id| ReplicaId::parse(id).ok())
                .is_some_and(|id| !known.contains(&id))
        };
        let mut folders: BTreeSet<PathBuf> = self
            .attachments
            .all()
            .iter()
            .flat_map(|attachment| attachment.conflist.lease_folders())
            .collect();
        // One that cannot be read is told of when a replica needs it.
        if let Ok(list) = self.conflist(false) {
            folders.extend(list.lease_folders());
        }
        for folder in folders {
            let freed = leases::clean(&folder, is_stray);
            let freed = freed.map_err(failed("clean the leases in", &folder))?;
            if !freed.is_empty() {
                info!(folder = %folder.display(), ?freed, "removed leases of replicas that are gone");
            }
        }
        Ok(())
    }

    /// Other instances, and other runtimes, may use the same plugins.
    fn container_prefix(&self) -> String {
        format!("stokehold-{}-", self.options.instance)
    }

    fn container(&self, id: &ReplicaId) -> String {
        format!("{}{id}", self.container_prefix())
    }

    fn conflist(&self, routed: bool) -> Result<Conflist, NetworkError> {
        let options = &self.options;
        let Some(path) = &options.conflist else {
            let leases = options.state_dir.join("leases");
            return Ok(Conflist::own(
                &options.bridge,
                options.subnet,
                &leases,
                routed,
            ));
        };
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(failed("read", path))?;
        let read = file.take(MAX_CONFLIST_BYTES).read_to_end(&mut text);
        read.map_err(failed("read", path))?;
        Conflist::parse(&text).map_err(|source| NetworkError::Conflist {
            path: path.clone(),
            source,
        })
    }

    fn own_bridge(&self) -> Option<&str> {
        let ours = self.options.conflist.is_none();
        ours.then_some(self.options.bridge.as_str())
    }

    /// Replicas of which there is anything here.
    pub fn list(&self) -> Result<BTreeSet<ReplicaId>, NetworkError> {
        let listed = self.namespaces.list();
        let listed = listed.map_err(failed("list", &self.options.netns_dir))?;
        Ok(listed.into_iter().chain(self.attachments.ids()).collect())
    }

    /// Where a replica listens.
    pub fn address(&self, id: &ReplicaId) -> Result<SocketAddr, NetworkError> {
        let attachment = self.attachments.get(id);
        attachment
            .and_then(|attachment| attachment.address())
            .ok_or(NetworkError::NoAddress)
    }

    /// Gives a replica its interface; nothing of an earlier attempt may be left (see [`Self::detach`]).
    pub async fn attach(
        self: &Arc<Self>,
        replica: &PlannedReplica,
    ) -> Result<Attached, NetworkError> {
        let id = &replica.id;
        let mut attachment = self.intend(replica)?;
        let list = attachment.conflist.clone();
        self.plugins.check(&list)?;
        self.save(attachment.clone()).await?;
        if let Some(bridge) = self.own_bridge() {
            let mut installed = self.installed.lock().await;
            self.mark_used().await?;
            kernel::make_bridge(bridge, self.options.subnet).await?;
            // The bridge is closed before the first port is on it.
            self.install(&mut installed).await?;
        } else {
            self.mark_used().await?;
        }
        let netns = self.make_namespace(id).await?;
        let container = self.container(id);
        let target = Target {
            container: &container,
            netns: &netns,
        };
        let (result, link) = self.plugins.add(&list, target).await?;
        let ports = ports(&list, &link.host_interfaces);
        if ports.is_empty() || link.addresses.is_empty() {
            let network = list.name;
            return Err(NetworkError::Unguarded { network });
        }
        let resolv_conf = self.write_resolv_conf(&attachment).await?;
        attachment.made = Some(Made { result, link });
        self.save(attachment).await?;
        if self.own_bridge().is_some() {
            for port in &ports {
                kernel::isolate(port).await?;
            }
        }
        self.refresh().await?;
        Ok(Attached { netns, resolv_conf })
    }

    /// What is to be made, once it is known that it can be.
    fn intend(&self, replica: &PlannedReplica) -> Result<Attachment, NetworkError> {
        let container = &replica.container;
        kernel::check_tools()?;
        if !container.egress.is_none() {
            kernel::check_forwarding()?;
        }
        let resolvers = match container.egress.allows_dns() {
            true => self.resolvers()?,
            false => Vec::new(),
        };
        Ok(Attachment::intended(
            replica.id.clone(),
            self.conflist(!container.egress.is_none())?,
            container.port,
            container.egress.clone(),
            resolvers,
        ))
    }

    fn resolvers(&self) -> Result<Vec<IpAddr>, NetworkError> {
        let mut found = match &self.options.resolvers {
            Some(set) => set.clone(),
            None => RESOLV_CONFS
                .iter()
                .filter_map(|path| std::fs::read_to_string(path).ok())
                .map(|text| conflist::resolvers(&text))
                .find(|found| !found.is_empty())
                .unwrap_or_default(),
        };
        found.truncate(MAX_RESOLVERS);
        if found.is_empty() {
            return Err(NetworkError::NoResolvers);
        }
        Ok(found)
    }

    /// Undoes [`Self::attach`], from whatever it came to; nothing where nothing was made.
    pub async fn detach(self: &Arc<Self>, id: &ReplicaId) -> Result<(), NetworkError> {
        let attachment = self.attachments.get(id);
        let netns = self.namespaces.path(id);
        if attachment.is_none() && !netns.exists() {
            return Ok(());
        }
        if let Some(attachment) = &attachment {
            let container = self.container(id);
            let target = Target {
                container: &container,
                netns: &netns,
            };
            let made = attachment.made.as_ref().map(|made| &made.result);
            self.plugins.del(&attachment.conflist, made, target).await?;
        }
        let (networks, id) = (Arc::clone(self), id.clone());
        blocking(move || {
            let removed = networks.namespaces.remove(&id);
            removed.map_err(failed("remove network namespace", &netns))?;
            let resolv_conf = networks.resolv_conf(&id);
            remove_file(&resolv_conf).map_err(failed("remove", &resolv_conf))?;
            let records = &networks.options.state_dir;
            let removed = networks.attachments.remove(&id);
            removed.map_err(failed("remove a replica's record from", records))
        })
        .await?;
        self.refresh().await?;
        Ok(())
    }

    /// Makes the kernel's rules those of the replicas that there are.
    pub async fn refresh(&self) -> Result<Refreshed, NetworkError> {
        let mut installed = self.installed.lock().await;
        if self.attachments.ids().is_empty() {
            return self.uninstall(&mut installed).await;
        }
        self.install(&mut installed).await
    }

    async fn install(&self, installed: &mut Option<Installed>) -> Result<Refreshed, NetworkError> {
        let script = rules::render(&self.ruleset());
        let table = &self.options.bridge;
        let done = match installed {
            Some(before) if before.script == script => {
                let shown = kernel::listing(table).await?;
                if shown.as_ref() == Some(&before.listing) {
                    return Ok(Refreshed::Unchanged);
                }
                Refreshed::Restored
            }
            Some(_) | None => Refreshed::Changed,
        };
        kernel::apply(&script).await?;
        let listing = kernel::listing(table).await?.unwrap_or_default();
        *installed = Some(Installed { script, listing });
        Ok(done)
    }

    /// The last replica with an interface is gone. What another agent made is none of ours.
    async fn uninstall(
        &self,
        installed: &mut Option<Installed>,
    ) -> Result<Refreshed, NetworkError> {
        let mark = self.mark();
        if !mark.exists() {
            return Ok(Refreshed::Unchanged);
        }
        kernel::remove_tables(&self.options.bridge).await?;
        if let Some(bridge) = self.own_bridge() {
            kernel::remove_bridge(bridge).await?;
        }
        remove_file(&mark).map_err(failed("remove", &mark))?;
        *installed = None;
        Ok(Refreshed::Changed)
    }

    fn ruleset(&self) -> Ruleset {
        let alive = |attachment: &Attachment| self.namespaces.exists(&attachment.replica);
        let replicas = self.attachments.all().into_iter().filter(alive);
        Ruleset {
            table: self.options.bridge.clone(),
            bridge: self.own_bridge().map(str::to_owned),
            gateway_gid: self.options.gateway_gid,
            replicas: replicas.filter_map(guarded).collect(),
        }
    }

    /// Says that bridge and tables are, or may be, there.
    fn mark(&self) -> PathBuf {
        self.options.state_dir.join("in-use")
    }

    async fn mark_used(&self) -> Result<(), NetworkError> {
        let mark = self.mark();
        blocking(move || {
            if mark.exists() {
                return Ok(());
            }
            let written = daemon::files::write_atomic(&mark, b"", 0o600);
            written.map_err(failed("write", &mark))
        })
        .await
    }

    fn resolv_conf(&self, id: &ReplicaId) -> PathBuf {
        self.options.state_dir.join(format!("{id}.resolv.conf"))
    }

    async fn write_resolv_conf(
        &self,
        attachment: &Attachment,
    ) -> Result<Option<PathBuf>, NetworkError> {
        if attachment.resolvers.is_empty() {
            return Ok(None);
        }
        let path = self.resolv_conf(&attachment.replica);
        let lines = attachment.resolvers.iter();
        let text: String = lines
            .map(|address| format!("nameserver {address}\n"))
            .collect();
        let target = path.clone();
        blocking(move || {
            let written = daemon::files::write_atomic(&target, text.as_bytes(), 0o644);
            written.map_err(failed("write", &target))
        })
        .await?;
        Ok(Some(path))
    }

    async fn save(self: &Arc<Self>, attachment: Attachment) -> Result<(), NetworkError> {
        let networks = Arc::clone(self);
        blocking(move || {
            let records = &networks.options.state_dir;
            let saved = networks.attachments.save(attachment);
            saved.map_err(failed("write a replica's record into", records))
        })
        .await
    }

    async fn make_namespace(self: &Arc<Self>, id: &ReplicaId) -> Result<PathBuf, NetworkError> {
        let (networks, id) = (Arc::clone(self), id.clone());
        blocking(move || {
            let path = networks.namespaces.path(&id);
            let made = networks.namespaces.make(&id);
            made.map_err(failed("make network namespace", &path))
        })
        .await
    }

    /// Keeps the rules in the kernel until cancelled.
    pub async fn keep(self: Arc<Self>, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut ticker = tokio::time::interval(KEEP_EVERY);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = ticker.tick() => {}
            }
            let trouble = match self.refresh().await {
                Ok(Refreshed::Unchanged) => None,
                Ok(Refreshed::Changed) => {
                    info!(
                        table = self.options.bridge,
                        "network rules of replicas are set"
                    );
                    None
                }
                Ok(Refreshed::Restored) => {
                    warn!(
                        table = self.options.bridge,
                        "network rules of replicas were changed by somebody else and are restored"
                    );
                    None
                }
                Err(error) => Some(Chain(&error).to_string()),
            };
            // Said once, not every few seconds.
            if let Some(error) = trouble.as_ref().filter(|_| trouble != said) {
                warn!(error, "network rules of replicas cannot be kept");
            }
            said = trouble;
        }
    }
}

/// The node's ends of a replica's interface: what is no bridge.
fn ports(list: &Conflist, host_interfaces: &[String]) -> Vec<String> {
    let bridges = list.bridges();
    let ends = host_interfaces
        .iter()
        .filter(|name| !bridges.contains(name));
    ends.cloned().collect()
}

fn guarded(attachment: Attachment) -> Option<Guarded> {
    let link = attachment.made?.link;
    Some(Guarded {
        host_interfaces: ports(&attachment.conflist, &link.host_interfaces),
        id: attachment.replica,
        addresses: link.addresses,
        port: attachment.port,
        egress: attachment.egress,
        resolvers: attachment.resolvers,
        mac: link.mac,
    })
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs file system work where it may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|ended| Err(NetworkError::CutOff(ended.to_string())))
}
