//! The `stokehold-gateway` program: arguments, configuration, the daemon's tasks.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use daemon::credentials::Credentials;
use daemon::http::HttpLimits;
use daemon::identity::Identity;
use daemon::link::{LinkOptions, default_node_name, link};
use daemon::renew::Renewal;
use daemon::tasks::{Tasks, shutdown_signal};
use daemon::telemetry::Chain;
use daemon::{admin, files, join, notify, owner, telemetry, tls};
use prometheus_client::registry::Registry;
use shared::ids::{NodeName, Role};
use shared::routes::Routes;
use shared::wire::{Hello, PROTOCOL_MAX, PROTOCOL_MIN};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::gateway::Options;
use crate::routes_file;
use crate::server::{Gateway, Listeners};
use crate::session::Session;

const DEFAULT_CONFIG: &str = "/etc/stokehold/gateway.toml";
/// Beyond the drain, for everything that is not a request.
const EXTRA_GRACE: Duration = Duration::from_secs(5);

/// Stokehold's gateway: serves clients' requests from the replicas of the cluster.
#[derive(Debug, Parser)]
#[command(name = "stokehold-gateway", version)]
struct Arguments {
    /// Configuration file [default: /etc/stokehold/gateway.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say whether the configuration is valid, and end
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this gateway a member of a cluster, with a token from `stokehold node token`
    Join(JoinArguments),
}

#[derive(Debug, Args)]
struct JoinArguments {
    /// File that holds the token; - for standard input
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// This node's name [default: `node` of the configuration, else the host's name]
    #[arg(long)]
    node: Option<NodeName>,
    /// A host name or address that clients use for this gateway; may be repeated
    #[arg(long = "name", value_name = "HOST")]
    names: Vec<String>,
}

pub(crate) fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tls::install_crypto_provider();
    let named = arguments.config.as_deref();
    let config: Config = daemon::config::load_daemon(named, DEFAULT_CONFIG, Config::check)?;
    match arguments.command {
        Some(Command::Join(join)) => {
            daemon::exit::block_on("gateway", join_cluster(&config, &join))
        }
        None if arguments.check_config => writeln!(std::io::stdout(), "configuration is valid")
            .context("write to standard output"),
        None => {
            telemetry::init(&config.log);
            daemon::exit::block_on("gateway", serve(config))
        }
    }
}

async fn join_cluster(config: &Config, arguments: &JoinArguments) -> anyhow::Result<()> {
    let node = arguments
        .node
        .clone()
        .or_else(|| config.node.clone())
        .or_else(default_node_name)
        .context("the host's name is not a valid node name: give one with --node")?;
    let token = join::read_token(Some(&arguments.token_file))?;
    let mut names = arguments.names.clone();
    if let Some(host) = host_name(config)
        && !names.contains(&host)
    {
        names.push(host);
    }
    owner::become_owner_of(&config.pki_dir)
        .with_context(|| format!("become the owner of {}", config.pki_dir.display()))?;
    join::join(&token, Role::Gateway, &node, &names, &config.pki_dir).await?;
    writeln!(
        std::io::stdout(),
        "joined as gateway of node {node}; identity in {}\nnext: systemctl start stokehold-gateway",
        config.pki_dir.display()
    )
    .context("write to standard output")
}

/// Under which other gateways, and mostly clients, reach this one.
fn host_name(config: &Config) -> Option<String> {
    config.advertise.clone().or_else(|| {
        let host = nix::unistd::gethostname().ok()?.into_string().ok()?;
        (!host.is_empty()).then(|| host.to_ascii_lowercase())
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    raise_file_limit();
    let identity = Identity::load(&config.pki_dir)?;
    anyhow::ensure!(
        identity.subject.role == Role::Gateway,
        "the identity in {} is a {}'s, not a gateway's",
        config.pki_dir.display(),
        identity.subject.role
    );
    if let Some(node) = &config.node {
        anyhow::ensure!(
            *node == identity.subject.node,
            "the configuration says node {node}, the identity in {} is of node {}: join again, or \
             correct `node`",
            config.pki_dir.display(),
            identity.subject.node
        );
    }
    // What cannot be listened on is found before anything is begun.
    let admin_listener = admin::bind(config.admin_listen).await?;
    let node = identity.subject.node.clone();
    let credentials = Credentials::new(identity, Some(config.pki_dir.clone()))?;
    let listeners = listen(&config, &credentials).await?;
    files::private_dir(&config.state_dir, 0o700)
        .with_context(|| format!("make the folder {}", config.state_dir.display()))?;
    let scheduler = scheduler_addresses(&config)?;
    let mut registry = Registry::default();
    let rest = join::rest_addresses(&config.pki_dir, &config.scheduler)?;
    let renewal = Renewal::new(credentials.clone(), rest.clone(), &mut registry);
    renewal.if_expired().await;
    let options = Options {
        credentials: credentials.clone(),
        run_dir: config.run_dir.clone(),
        scheduler: rest,
        hold: config.limits.hold(),
        body_idle: config.limits.body_idle(),
        body_memory: config.limits.body_memory,
    };
    let mut gateway = Gateway::new(&options, &mut registry)?;
    load_routes(&gateway, &config)?;
    let hello = hello(&gateway, &config, &listeners)?;

    let cancel = CancellationToken::new();
    let mut tasks = Tasks::new(cancel.clone());
    tasks.spawn("signals", shutdown_signal(cancel.clone()));
    let (ready, readiness) = admin::readiness("no routes yet");
    let (trouble, not_on_disk) = watch::channel(None);
    let demands = gateway.take_demands().context("demands are taken once")?;
    info!(
        listen = %listeners.client.local_addr()?, peer_listen = %listeners.peer.local_addr()?,
        %node, "serving"
    );
    gateway.spawn(&mut tasks, &credentials, listeners, &cancel)?;
    let link_options = LinkOptions {
        addresses: scheduler,
        credentials,
        hello,
    };
    let (handle, events, keep_link) = link(link_options, cancel.child_token());
    let admin = admin::serve_with(
        admin_listener,
        registry,
        readiness,
        vec![renewal.problem(), handle.problem.clone(), not_on_disk],
        cancel.child_token(),
    );
    tasks.spawn("admin", admin);
    tasks.spawn("certificate", renewal.run(cancel.child_token()));
    tasks.spawn("link", keep_link);
    let session = Session::new(Arc::clone(&gateway.state), handle, config.log_dir.clone());
    tasks.spawn(
        "session",
        session.run(events, demands, cancel.child_token()),
    );
    let routes = gateway.state.routes();
    let save = routes_file::run(
        config.state_dir.clone(),
        routes.clone(),
        trouble,
        cancel.child_token(),
    );
    tasks.spawn("routes-file", save);
    tasks.spawn(
        "readiness",
        tell_readiness(routes, ready, cancel.child_token()),
    );

    notify::ready();
    let stopping = cancel.clone();
    tasks.spawn("stopping", async move {
        stopping.cancelled().await;
        notify::stopping();
        Ok(())
    });
    tasks.join(config.limits.drain() + EXTRA_GRACE).await?;
    Ok(())
}

fn scheduler_addresses(config: &Config) -> anyhow::Result<Vec<String>> {
    if !config.scheduler.is_empty() {
        return Ok(config.scheduler.clone());
    }
    join::scheduler_addresses(&config.pki_dir).with_context(|| {
        format!(
            "read the scheduler's address in {}",
            config.pki_dir.display()
        )
    })
}

/// Serves from the last routes at once; what is wrong with them costs only that. Those of a later
/// version are not ours to replace.
fn load_routes(gateway: &Gateway, config: &Config) -> anyhow::Result<()> {
    match routes_file::load(&config.state_dir) {
        Ok(None) => info!("no routes from an earlier run"),
        Ok(Some(routes)) => {
            let (epoch, revision) = (routes.epoch, routes.revision);
            match gateway.apply_routes(routes) {
                Ok(_) => info!(%epoch, %revision, "routes of the earlier run are in use"),
                Err(refused) => warn!(error = %refused, "routes of the earlier run refused"),
            }
        }
        Err(error @ routes_file::LoadError::Newer { .. }) => return Err(error.into()),
        Err(error) => warn!(error = %Chain(&error), "routes of the earlier run are not usable"),
    }
    Ok(())
}

async fn listen(config: &Config, credentials: &Credentials) -> anyhow::Result<Listeners> {
    let client_tls = match (&config.tls.certificate, &config.tls.key) {
        (Some(certificate), Some(key)) => tls::https_server_from_pem(certificate, key)?,
        _ => tls::https_server(credentials)?,
    };
    let bind = async |address, key: &str| daemon::listen::tcp(address, key).await;
    let limits = HttpLimits {
        drain: config.limits.drain(),
        ..HttpLimits::default()
    };
    Ok(Listeners {
        client: bind(config.listen, "listen").await?,
        client_tls,
        client_limits: HttpLimits {
            max_connections: config.limits.max_connections,
            ..limits
        },
        peer: bind(config.peer_listen, "peer_listen").await?,
        peer_limits: HttpLimits {
            max_connections: config.limits.max_peer_connections,
            ..limits
        },
    })
}

type MakeHello = Arc<dyn Fn() -> Hello + Send + Sync>;

fn hello(gateway: &Gateway, config: &Config, listeners: &Listeners) -> anyhow::Result<MakeHello> {
    let host = host_name(config).context("the host has no name: set `advertise`")?;
    // The ports are those that were bound: a configured 0 is any.
    let address = |listener: &TcpListener| -> anyhow::Result<String> {
        let port = listener.local_addr()?.port();
        let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
        Ok(if is_v6 {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        })
    };
    let peer_address = address(&listeners.peer)?;
    let client_address = address(&listeners.client)?;
    let routes = gateway.state.routes();
    Ok(Arc::new(move || Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        highest_epoch: routes.borrow().as_ref().map_or(0, |r| r.epoch.0),
        peer_address: peer_address.clone(),
        client_address: client_address.clone(),
        ..Hello::default()
    }))
}

/// The listeners are up before this runs, so routes are all that a ready gateway needs.
async fn tell_readiness(
    mut routes: watch::Receiver<Option<Arc<Routes>>>,
    ready: watch::Sender<Result<(), String>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    routes.mark_changed();
    loop {
        tokio::select! {
            () = cancel.cancelled() => {
                drop(ready.send_replace(Err("stopping".to_owned())));
                return Ok(());
            }
            changed = routes.changed() => if changed.is_err() { return Ok(()) },
        }
        if let Some(routes) = routes.borrow_and_update().as_ref() {
            drop(ready.send_replace(Ok(())));
            let (epoch, revision) = (routes.epoch, routes.revision);
            let endpoints = routes.endpoints.len();
            notify::status(&format!("routes {epoch}.{revision}, {endpoints} endpoints"));
        }
    }
}

/// Each request may need two file descriptors; the soft limit is often 1024.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // Under systemd the unit says both, and its filter of system calls forbids more.
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft < hard {
        true => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        false => Ok(()),
    });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files was not raised");
    }
}
