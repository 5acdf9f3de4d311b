//! The daemons' configuration files. Pure: texts from a plan.

use std::path::Path;

use toml::{Table, Value};

use super::accounts::REPLICA_UIDS;
use super::accounts::replica_uid_start;
use super::plan::Plan;
use super::settings;

/// Plugins of containerd that would open files or sockets outside of ours. Names that a version
/// does not know are ignored by it.
const DISABLED_PLUGINS: [&str; 6] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    "io.containerd.tracing.processor.v1.otlp",
];

pub(super) fn containerd(plan: &Plan) -> String {
    let layout = &plan.layout;
    let socket = layout.containerd_socket();
    let disabled = DISABLED_PLUGINS.map(Value::from).to_vec();
    table([
        ("version", 2.into()),
        ("root", path(&layout.containerd_root())),
        ("state", path(&layout.containerd_state())),
        ("oom_score", 0.into()),
        ("disabled_plugins", disabled.into()),
        (
            "grpc",
            section([
                ("address", path(&socket)),
                ("uid", 0.into()),
                ("gid", 0.into()),
            ]),
        ),
        (
            "ttrpc",
            section([("address", path(&socket.with_extension("sock.ttrpc")))]),
        ),
        ("debug", section([("level", "warn".into())])),
    ])
    .to_string()
}

pub(super) fn scheduler(plan: &Plan) -> String {
    let layout = &plan.layout;
    let listen = plan.listening(plan.ports.scheduler).to_string();
    let advertise: Vec<Value> = plan
        .names
        .iter()
        .map(|name| with_port(name, plan.ports.scheduler).into())
        .collect();
    let config = table([
        ("data_dir", path(&layout.own("scheduler"))),
        ("pki_dir", path(&layout.pki("scheduler"))),
        ("listen_http", listen.clone().into()),
        ("listen_quic", listen.into()),
        ("advertise", advertise.into()),
        ("admin_listen", metrics(plan.ports.metrics[0])),
        ("runtimes_dirs", vec![path(&plan.runtimes)].into()),
    ]);
    with_settings("scheduler", plan, config)
}

pub(super) fn agent(plan: &Plan, cache_capacity_bytes: u64) -> String {
    let layout = &plan.layout;
    let capacity = i64::try_from(cache_capacity_bytes).unwrap_or(i64::MAX);
    let config = table([
        ("node", plan.node.as_str().into()),
        ("scheduler", vec![scheduler_address(plan)].into()),
        ("pki_dir", path(&layout.pki("agent"))),
        ("state_dir", path(&layout.own("agent"))),
        ("cache_dir", path(&layout.own("models"))),
        ("cache_capacity", capacity.into()),
        ("run_dir", path(&layout.replicas())),
        ("log_dir", path(&layout.replica_logs())),
        ("containerd", path(&plan.containerd_socket())),
        ("containerd_namespace", plan.namespace().into()),
        (
            "gateway_group",
            plan.accounts.gateway.gid.to_string().into(),
        ),
        (
            "replica_uid_start",
            i64::from(replica_uid_start(&layout.id)).into(),
        ),
        ("replica_uid_count", i64::from(REPLICA_UIDS).into()),
        ("logshim", path(&plan.programs.logshim)),
        ("cgroup_parent", layout.cgroup_parent().into()),
        ("admin_listen", metrics(plan.ports.metrics[1])),
        (
            "network",
            section([
                ("bridge", layout.bridge().into()),
                ("subnet", layout.subnet().into()),
            ]),
        ),
    ]);
    with_settings("agent", plan, config)
}

pub(super) fn gateway(plan: &Plan) -> String {
    let layout = &plan.layout;
    // Other machines come by the host's name, which is last where there is one.
    let advertise = if plan.listen.is_unspecified() {
        plan.names.last()
    } else {
        plan.names.first()
    };
    let config = table([
        ("node", plan.node.as_str().into()),
        ("scheduler", vec![scheduler_address(plan)].into()),
        ("pki_dir", path(&layout.pki("gateway"))),
        ("state_dir", path(&layout.own("gateway"))),
        ("run_dir", path(&layout.replicas())),
        ("log_dir", path(&layout.replica_logs())),
        (
            "listen",
            plan.listening(plan.ports.gateway).to_string().into(),
        ),
        (
            "peer_listen",
            plan.listening(plan.ports.peers).to_string().into(),
        ),
        (
            "advertise",
            advertise.map_or("127.0.0.1", String::as_str).into(),
        ),
        ("admin_listen", metrics(plan.ports.metrics[2])),
    ]);
    with_settings("gateway", plan, config)
}

fn with_settings(daemon: &str, plan: &Plan, mut config: Table) -> String {
    settings::apply(daemon, &plan.settings, &mut config);
    config.to_string()
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn section<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Table(table(entries))
}

fn path(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

fn scheduler_address(plan: &Plan) -> Value {
    plan.local(plan.ports.scheduler).to_string().into()
}

/// Metrics are for this machine.
fn metrics(port: u16) -> Value {
    format!("127.0.0.1:{port}").into()
}

/// `host:port`, with brackets around an IPv6 address.
fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::accounts::{Account, Accounts};
    use crate::up::layout::Layout;
    use crate::up::plan::{Containerd, Ports};
    use crate::up::programs::Programs;

    fn plan() -> Plan {
        let account = |id| Account { uid: id, gid: id };
        Plan {
            layout: Layout {
                data: "/var/lib/stokehold/up".into(),
                run: "/run/stokehold/up-00000001".into(),
                id: "00000001".into(),
            },
            node: "n1".parse().expect("name"),
            ports: Ports::new(None),
            listen: "127.0.0.1".parse().expect("address"),
            names: vec!["127.0.0.1".into(), "localhost".into()],
            programs: Programs {
                scheduler: "/usr/bin/stokehold-scheduler".into(),
                agent: "/usr/bin/stokehold-agent".into(),
                gateway: "/usr/bin/stokehold-gateway".into(),
                logshim: "/usr/libexec/stokehold/stokehold-logshim".into(),
            },
            runtimes: "/usr/share/stokehold/runtimes".into(),
            accounts: Accounts {
                scheduler: account(1),
                gateway: account(2),
            },
            containerd: Containerd::Private {
                program: "/usr/bin/containerd".into(),
            },
            settings: Vec::new(),
        }
    }

    #[test]
    fn the_four_files_of_an_instance() {
        let plan = plan();
        let text = [
            ("containerd", containerd(&plan)),
            ("scheduler", scheduler(&plan)),
            ("agent", agent(&plan, 1 << 40)),
            ("gateway", gateway(&plan)),
        ]
        .map(|(name, text)| format!("# {name}\n{text}"))
        .join("\n");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn what_up_decides_cannot_be_set_and_everything_else_arrives() {
        let mut plan = plan();
        let texts = [
            ("scheduler", scheduler(&plan)),
            ("agent", agent(&plan, 1 << 40)),
            ("gateway", gateway(&plan)),
        ];
        for (daemon, text) in texts {
            for key in text.parse::<Table>().expect("TOML").keys() {
                // Values here that are mere defaults.
                let default = key == "cache_capacity" || key == "network";
                assert_eq!(settings::is_own(daemon, key), !default, "{daemon}.{key}");
            }
        }
        "agent.network.bridge=x"
            .parse::<settings::Setting>()
            .expect_err("`down` looks for it by name");
        let subnet = "agent.network.subnet=10.9.0.0/24";
        plan.settings = vec!["agent.cache_capacity=20GiB", subnet]
            .into_iter()
            .map(|text| text.parse().expect("a setting"))
            .collect();
        assert!(agent(&plan, 1 << 40).contains("cache_capacity = \"20GiB\""));
        assert!(!gateway(&plan).contains("20GiB"));
        let network = "[network]\nbridge = \"skh-00000001\"\nsubnet = \"10.9.0.0/24\"\n";
        assert!(agent(&plan, 1).contains(network));
    }

    #[test]
    fn an_ipv6_address_gets_its_brackets() {
        assert_eq!(with_port("::1", 7), "[::1]:7");
        assert_eq!(with_port("a", 7), "a:7");
    }
}
