//! Brings an instance up, step by step; a step that fails says why, with the log's last lines.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shared::api::NodeList;
use shared::ids::Role;

use super::accounts::{self, Account};
use super::configs;
use super::join;
use super::plan::{Containerd, Plan};
use super::service::{Happened, Program, Service};
use crate::client::{Call, Client};

const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LOG_LINES: usize = 12;

/// The model cache may use at most half of its disk, and 200 GiB.
const MOST_CACHE_BYTES: u64 = 200 << 30;

/// The daemons finish what they are at; a gateway its requests.
const GRACE: Duration = Duration::from_secs(30);
const GATEWAY_GRACE: Duration = Duration::from_secs(40);

/// The services in the order in which they are started.
pub(super) struct Services {
    pub(super) all: Vec<Service>,
}

impl Services {
    pub(super) fn get(&mut self, name: &str) -> Option<&mut Service> {
        self.all.iter_mut().find(|service| service.name() == name)
    }
}

/// Folders and configuration files.
pub(super) fn prepare(plan: &Plan) -> anyhow::Result<()> {
    let layout = &plan.layout;
    let scheduler = Some(plan.accounts.scheduler);
    let gateway = Some(plan.accounts.gateway);
    let group = Some(Account {
        uid: 0,
        gid: plan.accounts.gateway.gid,
    });
    let parent = layout.run.parent().expect("it lies in /run/stokehold");
    let folders = [
        (layout.data.join("config"), None, 0o755),
        (layout.data.join("logs"), None, 0o755),
        (layout.replica_logs(), None, 0o711),
        (layout.data.join("pki"), None, 0o755),
        (layout.pki("scheduler"), scheduler, 0o700),
        (layout.pki("agent"), None, 0o700),
        (layout.pki("gateway"), gateway, 0o700),
        (layout.own("scheduler"), scheduler, 0o700),
        (layout.own("gateway"), gateway, 0o700),
        (layout.own("agent"), None, 0o700),
        (layout.own("models"), None, 0o700),
        (layout.data.join("containerd"), None, 0o711),
        (layout.containerd_root(), None, 0o711),
        (parent.to_owned(), None, 0o755),
        (layout.run.clone(), None, 0o755),
        (layout.replicas(), group, 0o750),
    ];
    for (path, owner, mode) in folders {
        accounts::folder(&path, owner, mode)
            .with_context(|| format!("make folder {}", path.display()))?;
    }
    let capacity = cache_capacity(plan).context("read the size of the disk")?;
    let files = [
        ("containerd", configs::containerd(plan)),
        ("scheduler", configs::scheduler(plan)),
        ("gateway", configs::gateway(plan)),
        ("agent", configs::agent(plan, capacity)),
    ];
    for (name, text) in files {
        let path = layout.config(name);
        daemon::files::write_atomic(&path, text.as_bytes(), 0o644)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn cache_capacity(plan: &Plan) -> io::Result<u64> {
    let disk = nix::sys::statvfs::statvfs(&plan.layout.own("models"))?;
    let half = disk.blocks().saturating_mul(disk.fragment_size()) / 2;
    Ok(half.min(MOST_CACHE_BYTES))
}

pub(super) fn services(plan: &Plan) -> Services {
    let layout = &plan.layout;
    let program = |name, path: &std::path::Path, account, grace| Program {
        name,
        path: path.to_owned(),
        arguments: vec!["--config".into(), layout.config(name).into()],
        account,
        log: layout.log(name),
        grace,
    };
    let mut all = Vec::new();
    if let Containerd::Private { program: path } = &plan.containerd {
        all.push(program("containerd", path, None, GRACE));
    }
    let accounts = &plan.accounts;
    let programs = &plan.programs;
    all.push(program(
        "scheduler",
        &programs.scheduler,
        Some(accounts.scheduler),
        GRACE,
    ));
    all.push(program(
        "gateway",
        &programs.gateway,
        Some(accounts.gateway),
        GATEWAY_GRACE,
    ));
    all.push(program("agent", &programs.agent, None, GRACE));
    Services {
        all: all.into_iter().map(Service::new).collect(),
    }
}

/// Starts everything, in order; `say` is told what is being waited for.
pub(super) async fn start(
    plan: &Plan,
    services: &mut Services,
    deadline: Instant,
    mut say: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if plan.is_private() {
        say("starting containerd")?;
        launch(services, "containerd")?;
    }
    let socket = plan.containerd_socket();
    until(services, deadline, "containerd answers", async || {
        tokio::net::UnixStream::connect(&socket).await?;
        Ok(())
    })
    .await?;

    say("starting the scheduler")?;
    launch(services, "scheduler")?;
    until(services, deadline, "the scheduler answers", async || {
        let client = Client::new(&plan.server(), Some(&plan.layout.ca()), None)?;
        let call = Call::get("/healthz").timeout(Some(Duration::from_secs(2)));
        client.done(call).await?;
        // The first start writes it before it listens, or soon after.
        std::fs::metadata(plan.layout.admin_token())?;
        Ok(())
    })
    .await?;

    say("joining agent and gateway")?;
    let [agent, gateway] = ["agent", "gateway"].map(|name| program_of(services, name));
    join::join(plan, [(Role::Agent, &agent), (Role::Gateway, &gateway)]).await?;

    say("starting gateway and agent")?;
    launch(services, "gateway")?;
    launch(services, "agent")?;
    let admin = join::admin(plan)?;
    until(
        services,
        deadline,
        "agent and gateway are connected",
        async || {
            let call = Call::get("/api/stokehold/v1/nodes").timeout(Some(Duration::from_secs(2)));
            let nodes: NodeList = admin.call(call).await?;
            let node = nodes.nodes.iter().find(|node| node.name == plan.node);
            let node = node.context("the node is not known yet")?;
            anyhow::ensure!(node.agent_connected, "the agent is not connected yet");
            anyhow::ensure!(node.gateway_connected, "the gateway is not connected yet");
            anyhow::ensure!(
                node.last_report_age_s.is_some(),
                "the agent has not reported yet"
            );
            Ok(())
        },
    )
    .await?;
    until(services, deadline, "the gateway answers", async || {
        let address = plan.local(plan.ports.gateway);
        tokio::net::TcpStream::connect(address).await?;
        Ok(())
    })
    .await
}

fn program_of(services: &mut Services, name: &str) -> Program {
    let service = services.get(name).expect("it is one of ours");
    service.program().clone()
}

fn launch(services: &mut Services, name: &str) -> anyhow::Result<()> {
    let service = services.get(name).expect("it is one of ours");
    service.start().with_context(|| format!("start {name}"))
}

/// Waits until `check` succeeds. A service that ends while starting is an error: nothing that would
/// mend itself makes it do so.
async fn until<F>(
    services: &mut Services,
    deadline: Instant,
    what: &str,
    mut check: impl FnMut() -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    loop {
        let Err(error) = check().await else {
            return Ok(());
        };
        for service in &mut services.all {
            if let Happened::Ended { why, .. } = service.tick(Instant::now()) {
                anyhow::bail!("{} ended with {why}{}", service.name(), log_of(service));
            }
        }
        if Instant::now() >= deadline {
            let logs: String = services.all.iter().map(log_of).collect();
            return Err(error.context(format!("waited in vain until {what}{logs}")));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn log_of(service: &Service) -> String {
    let lines = service.last_lines(LOG_LINES);
    if lines.is_empty() {
        return String::new();
    }
    format!(
        "\n  last lines of {}:\n    {}",
        service.log().display(),
        lines.join("\n    ")
    )
}
