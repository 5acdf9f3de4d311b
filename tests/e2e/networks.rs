//! Replicas with interfaces: who reaches them, and whom they reach.
//!
//! Nothing here touches the machine's own network: the whole cluster runs in a network namespace of
//! the test's, and the outside world is another one, joined to it by a pair of interfaces.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::harness::{Cluster, eventually};

/// The node's own address on the way to the world.
const NODE: &str = "192.0.2.1";
const WORLD: [&str; 3] = ["192.0.2.7", "192.0.2.9", "192.0.2.53"];
const WORLD_PORTS: [u16; 3] = [8000, 8001, 53];
/// A service of the node's that listens on all its addresses.
const NODE_PORT: u16 = 9000;

fn template(name: &str, more: &str) -> (&'static str, String) {
    let file = match name {
        "tcp" => "tcp.toml",
        _ => "out.toml",
    };
    let text = format!(
        "name = \"{name}\"\nimage = \"stokehold.local/runtime-probe:1\"\n\
         command = [\"/stokehold-probe\", \"--model\", \"/model\"]\n{more}\n\
         shm_bytes = 1048576\ntmp_bytes = 16777216\n\
         [health]\npath = \"/ping\"\nstart_deadline_seconds = 60\n\
         [resources]\nmemory_bytes = 134217728\ncpu_millis = 300\npids = 64\n"
    );
    (file, text)
}

/// One that listens on TCP and may go nowhere, and one on a socket with a list.
fn templates() -> [(&'static str, String); 2] {
    [
        template("tcp", "transport = \"tcp\"\nport = 8080"),
        template("out", "egress = [\"192.0.2.7:8000\", \"dns\"]"),
    ]
}

/// Runs a test on a thread whose network is its own, and so is that of all that it starts.
fn alone(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

fn ip(arguments: &str) -> String {
    let words: Vec<&str> = arguments.split(' ').collect();
    let (success, said) = run("ip", &words);
    assert!(success, "ip {arguments}: {said}");
    said
}

/// The outside world: answers on all its addresses and ports as long as it lives.
struct World {
    orders: mpsc::Sender<SocketAddr>,
    reached: mpsc::Receiver<bool>,
}

impl World {
    fn new() -> Self {
        let (ready, is_ready) = mpsc::channel();
        let (linked, is_linked) = mpsc::channel::<()>();
        let (orders, orders_rx) = mpsc::channel::<SocketAddr>();
        let (reached_tx, reached) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let tid = nix::unistd::gettid();
            ready.send(tid).expect("sent");
            is_linked.recv().expect("linked");
            for address in WORLD {
                ip(&format!("address add {address}/24 dev world0"));
            }
            ip("link set world0 up");
            // It would know the way to replicas.
            ip(&format!("route add 10.0.0.0/8 via {NODE}"));
            for port in WORLD_PORTS {
                answer(&format!("0.0.0.0:{port}"));
            }
            ready.send(tid).expect("sent");
            for order in orders_rx {
                let _ = reached_tx.send(reaches(order));
            }
        });
        let tid = is_ready.recv().expect("the world's thread");
        let netns = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
        ip(&format!(
            "link add up0 type veth peer name world0 netns {netns}"
        ));
        ip(&format!("address add {NODE}/24 dev up0"));
        ip("link set up0 up");
        linked.send(()).expect("sent");
        is_ready.recv().expect("the world listens");
        Self { orders, reached }
    }

    /// Whether somebody out there gets through.
    fn reaches(&self, address: SocketAddr) -> bool {
        self.orders.send(address).expect("sent");
        self.reached.recv().expect("an answer")
    }
}

fn answer(listen: &str) {
    let listener = TcpListener::bind(listen).unwrap_or_else(|e| panic!("{listen}: {e}"));
    std::thread::spawn(move || for _ in listener.incoming() {});
}

fn reaches(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()
}

impl Cluster {
    fn run_dir(&self) -> PathBuf {
        let (_, agent) = self.config_of("agent");
        agent["run_dir"].as_str().expect("run_dir").into()
    }

    fn network(&self) -> toml::Table {
        let (_, agent) = self.config_of("agent");
        agent["network"].as_table().expect("network").clone()
    }

    fn bridge(&self) -> String {
        self.network()["bridge"]
            .as_str()
            .expect("bridge")
            .to_owned()
    }

    /// What the agent told the gateway of a replica's address.
    fn address(&self, replica: &str) -> SocketAddr {
        let file = self.run_dir().join(format!("{replica}.json"));
        let text = std::fs::read_to_string(file).expect("announced");
        let announced: Value = serde_json::from_str(&text).expect("JSON");
        announced["address"]
            .as_str()
            .expect("address")
            .parse()
            .expect("address")
    }

    /// What comes of it when a replica of this endpoint connects somewhere.
    fn connect(&self, endpoint: &str, to: &str) -> String {
        let body = json!({"inputs": [[1]], "params": {"connect": to}});
        let answer = self.query(endpoint, &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["connect"]
            .as_str()
            .expect("connect")
            .to_owned()
    }

    fn deploy_on(&self, endpoint: &str, runtime: &str, replicas: &str) {
        let model = self.push_probe(endpoint, "1", &json!({}));
        self.cli(&[
            "deploy",
            endpoint,
            "--model",
            &model,
            "--runtime",
            runtime,
            "--min-replicas",
            replicas,
            "--max-replicas",
            replicas,
        ]);
    }

    fn leases(&self) -> BTreeSet<String> {
        let (_, agent) = self.config_of("agent");
        let state = Path::new(agent["state_dir"].as_str().expect("state_dir"));
        let folder = state.join("network/leases").join(self.bridge());
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect()
    }

    fn namespaces(&self) -> usize {
        let folder = self.run_dir().join("netns");
        std::fs::read_dir(folder).into_iter().flatten().count()
    }
}

/// Interfaces beside loopback, what the kernel makes in each namespace, and the way to the world.
fn interfaces() -> Vec<String> {
    let all = ip("-o link show");
    let names = all.lines().filter_map(|line| line.split(": ").nth(1));
    let names = names.filter(|name| name.starts_with("veth") || name.starts_with("skh-"));
    names.map(str::to_owned).collect()
}

fn tables() -> String {
    let (success, said) = run("nft", &["list", "tables"]);
    assert!(success, "{said}");
    said
}

/// Everything of networks is gone, as far as the kernel and the agent's folders show.
fn nothing_left(cluster: &Cluster) -> Option<()> {
    let nothing = cluster.leases().is_empty()
        && cluster.namespaces() == 0
        && interfaces().is_empty()
        && tables().trim().is_empty();
    nothing.then_some(())
}

#[test]
fn a_replica_on_tcp_serves_its_gateway_and_reaches_nobody() {
    alone(|| {
        let world = World::new();
        answer(&format!("0.0.0.0:{NODE_PORT}"));
        let cluster = Cluster::start_with_templates(&templates());
        cluster.import_probe_image();
        cluster.deploy_on("one", "tcp", "1");
        cluster.deploy_on("two", "tcp", "1");
        let rows = json!({"inputs": [[1, 2]]});
        for endpoint in ["one", "two"] {
            let answer = cluster.query(endpoint, &rows);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["predictions"], json!([3.0]));
        }

        // Not the world, not a service of the node's on any of its addresses, not another replica.
        let other = cluster.address(&cluster.replicas("two")[0]);
        let own = cluster.address(&cluster.replicas("one")[0]);
        let subnet = cluster.network()["subnet"]
            .as_str()
            .expect("subnet")
            .to_owned();
        let gateway = subnet.replace("0/24", "1");
        let on_bridge = format!("{gateway}:{NODE_PORT}");
        assert!(
            reaches(on_bridge.parse().expect("address")),
            "the service is there"
        );
        for to in [
            "192.0.2.7:8000",
            &format!("{NODE}:{NODE_PORT}"),
            &on_bridge,
            &other.to_string(),
        ] {
            let came = cluster.connect("one", to);
            assert_ne!(came, "connected", "to {to}");
        }
        // Itself it does reach: the port is open there.
        assert_eq!(cluster.connect("one", &own.to_string()), "connected");
        // And nobody but the gateway reaches it, on the node or from outside.
        assert!(!reaches(own), "a program of root's that is not the gateway");
        assert!(!world.reaches(own), "somebody outside");
        assert!(world.reaches(format!("{NODE}:{NODE_PORT}").parse().expect("address")));

        // A killed agent changes nothing of it; a dead replica's place is cleared.
        let leases = cluster.leases();
        assert_eq!(leases.len(), 2, "{leases:?}");
        cluster.kill_and_wait("agent");
        eventually("the agent is back", || {
            let nodes = cluster.cli_json(&["node", "list"]);
            (nodes["nodes"][0]["agent_connected"] == true).then_some(())
        });
        assert_eq!(cluster.address(&cluster.replicas("one")[0]), own);
        assert_eq!(cluster.leases(), leases);
        assert_eq!(cluster.query("one", &rows).status, 200);
        assert_ne!(cluster.connect("one", &other.to_string()), "connected");
        cluster.cli(&["delete", "two"]);
        eventually("the lease of the deleted one is given back", || {
            (cluster.leases().len() == 1 && cluster.namespaces() == 1).then_some(())
        });
        assert_eq!(cluster.query("one", &rows).status, 200);

        // `down` takes away what still serves.
        cluster.finish();
        assert_eq!(interfaces(), Vec::<String>::new());
        assert_eq!(tables().trim(), "");
    });
}

#[test]
fn a_replica_with_an_egress_list_reaches_what_the_list_names_and_nothing_else() {
    alone(|| {
        let _world = World::new();
        answer(&format!("0.0.0.0:{NODE_PORT}"));
        let mut cluster = Cluster::start_with_templates(&templates());
        cluster.import_probe_image();

        // A node that forwards nothing says so, and how to mend it.
        for announced in ["does not forward packets", "replica ended by itself"] {
            cluster.announce(announced);
        }
        let model = cluster.push_probe("out", "1", &json!({}));
        let deploy = [
            "deploy",
            "out",
            "--model",
            &model,
            "--runtime",
            "out",
            "--max-replicas",
            "1",
        ];
        let mut no_wait = deploy.to_vec();
        no_wait.push("--no-wait");
        cluster.cli(&no_wait);
        eventually("the reason is told", || {
            let told = cluster.describe("out").to_string();
            told.contains("net.ipv4.ip_forward=1").then_some(())
        });
        cluster.cli(&["delete", "out"]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        let (path, mut agent) = cluster.config_of("agent");
        let network = agent["network"].as_table_mut().expect("network");
        network.insert("resolvers".into(), vec![WORLD[2]].into());
        std::fs::write(&path, agent.to_string()).expect("configuration");
        cluster.kill_and_wait("agent");
        cluster.cli(&deploy);

        let check = |when: &str| {
            for (to, connected) in [
                ("192.0.2.7:8000", true),
                ("192.0.2.53:53", true),
                ("192.0.2.7:8001", false),
                ("192.0.2.9:8000", false),
                ("192.0.2.53:8000", false),
                ("192.0.2.1:9000", false),
            ] {
                let came = cluster.connect("out", to);
                assert_eq!(came == "connected", connected, "{when}: {to}: {came}");
            }
        };
        check("at first");
        let replica = cluster.replicas("out")[0].clone();
        let resolv_conf = format!("{replica}.resolv.conf");
        let state = Path::new(agent["state_dir"].as_str().expect("state_dir")).join("network");
        let text = std::fs::read_to_string(state.join(&resolv_conf)).expect("resolv.conf");
        assert_eq!(text, "nameserver 192.0.2.53\n");

        // Somebody flushes all rules: they come back.
        let bridge = cluster.bridge();
        cluster.announce("changed by somebody else and are restored");
        let before = run("nft", &["list", "table", "inet", &bridge]);
        assert!(before.0, "{}", before.1);
        assert!(run("nft", &["flush", "ruleset"]).0);
        eventually("the rules are back", || {
            (run("nft", &["list", "table", "inet", &bridge]) == before).then_some(())
        });
        let check = |when: &str| {
            let came = cluster.connect("out", "192.0.2.7:8001");
            assert_ne!(came, "connected", "{when}");
            assert_eq!(
                cluster.connect("out", "192.0.2.7:8000"),
                "connected",
                "{when}"
            );
        };
        check("after the flush");
        cluster.kill_and_wait("agent");
        check("after the agent was killed");
        assert_eq!(cluster.replicas("out"), [replica]);

        // What a reboot leaves: leases of replicas that nobody has, beside those of other programs.
        cluster.cli(&["delete", "out"]);
        eventually("nothing of it is left", || nothing_left(&cluster));
        assert!(!state.join(&resolv_conf).exists());
        let leases = state.join("leases").join(&bridge);
        let subnet = cluster.network()["subnet"]
            .as_str()
            .expect("subnet")
            .to_owned();
        let lease = |last: &str, container: &str| {
            let path = leases.join(subnet.replace("0/24", last));
            std::fs::write(&path, format!("{container}\r\neth0")).expect("lease");
            path
        };
        let stray = lease("100", "stokehold-replicas-00000000000000ff");
        let foreign = lease("101", "another-runtimes");
        cluster.kill_and_wait("agent");
        eventually("the stray lease is gone", || {
            (!stray.exists()).then_some(())
        });
        assert!(foreign.exists());
        cluster.finish();
        assert_eq!(tables().trim(), "");
    });
}
