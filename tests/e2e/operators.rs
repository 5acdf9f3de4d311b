//! Mistakes of operators, answered where they look: ports that are taken, disks that are full. What was
//! acknowledged stays, what runs goes on, and nothing is left of what could not be.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::harness::{Cluster, eventually, free_ports, install};

/// A small disk of its own, for as long as it lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).expect("folder");
        nix::mount::mount(
            Some("stokehold-test"),
            at,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options),
        )
        .expect("mounted");
        Self(at.to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes until nothing fits any more.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("fill"))
            .expect("a file");
        for size in [64 << 10, 4 << 10] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.path("fill")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A daemon that is killed with its test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `/readyz` answers; `None` while nobody does.
fn readyz(port: u16) -> Option<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let body = answer.split_once("\r\n\r\n")?.1;
    Some(body.to_owned())
}

#[test]
fn a_port_that_is_taken_is_named_with_its_holder_and_up_leaves_nothing_behind() {
    let base = tempfile::Builder::new()
        .prefix("shk")
        .tempdir()
        .expect("folder");
    let bin = install(base.path());
    let ports = free_ports();
    let data = base.path().join("data");
    let me = format!("(process {})", std::process::id());
    let up = || {
        let output = Command::new(bin.join("stokehold"))
            .args([
                "up",
                "--detach",
                "--port-base",
                &ports.to_string(),
                "--data",
            ])
            .arg(&data)
            .env("HOME", base.path())
            .env_remove("SUDO_USER")
            .output()
            .expect("stokehold runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(!data.exists(), "something is left in {}", data.display());
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    for offset in 0..6 {
        let address = ("127.0.0.1", ports + offset);
        let _taken = TcpListener::bind(address).expect("free");
        let said = up();
        let expected = format!("TCP 127.0.0.1:{} is held by ", ports + offset);
        assert!(said.contains(&expected), "{said}");
        assert!(said.contains(&me) && said.contains("--port-base"), "{said}");
    }
    let _taken = UdpSocket::bind(("127.0.0.1", ports)).expect("free");
    let said = up();
    assert!(
        said.contains(&format!("UDP 127.0.0.1:{ports} is held by ")),
        "{said}"
    );
}

#[test]
fn a_scheduler_whose_port_is_taken_names_the_key_and_has_made_nothing() {
    let base = tempfile::tempdir().expect("folder");
    let ports = free_ports();
    let data = base.path().join("data");
    let config = base.path().join("scheduler.toml");
    let text = format!(
        "data_dir = {data:?}\npki_dir = {:?}\nlisten_http = \"127.0.0.1:{ports}\"\nlisten_quic = \
         \"127.0.0.1:{}\"\nadmin_listen = \"127.0.0.1:{}\"\nruntimes_dirs = []\n",
        base.path().join("pki"),
        ports + 1,
        ports + 2
    );
    std::fs::write(&config, text).expect("configuration");
    let run = |key: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_shim-scheduler"))
            .arg("--config")
            .arg(&config)
            .output()
            .expect("the scheduler runs");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains(&format!("set `{key}` to another port")),
            "{said}"
        );
        assert!(
            said.contains(&format!("(process {})", std::process::id())),
            "{said}"
        );
        assert!(!data.exists(), "something is left in {}", data.display());
    };
    let taken = TcpListener::bind(("127.0.0.1", ports)).expect("free");
    run("listen_http");
    drop(taken);
    let taken = UdpSocket::bind(("127.0.0.1", ports + 1)).expect("free");
    run("listen_quic");
    drop(taken);
    let _taken = TcpListener::bind(("127.0.0.1", ports + 2)).expect("free");
    run("admin_listen");
}

#[test]
fn a_scheduler_on_a_full_disk_refuses_changes_says_so_and_recovers_by_itself() {
    let base = tempfile::Builder::new()
        .prefix("shk")
        .tempdir()
        .expect("folder");
    let disk = SmallDisk::mount(&base.path().join("disk"), "size=80m,mode=0755");
    let bin = install(base.path());
    let ports = free_ports();
    let data = disk.path("data");
    let config = base.path().join("scheduler.toml");
    let text = format!(
        "data_dir = {data:?}\npki_dir = {:?}\nlisten_http = \"127.0.0.1:{ports}\"\nlisten_quic = \
         \"127.0.0.1:{ports}\"\nadmin_listen = \"127.0.0.1:{}\"\nadvertise = [\"127.0.0.1\"]\n\
         runtimes_dirs = []\n",
        base.path().join("pki"),
        ports + 1
    );
    std::fs::write(&config, text).expect("configuration");
    let log = base.path().join("scheduler.log");
    let start = || {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("log");
        let child = Command::new(bin.join("stokehold-scheduler"))
            .arg("--config")
            .arg(&config)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("the scheduler runs");
        Daemon(child)
    };
    let cli = |arguments: &[&str]| {
        let output = Command::new(bin.join("stokehold"))
            .args(arguments)
            .env("HOME", base.path())
            .env("STOKEHOLD_SERVER", format!("https://127.0.0.1:{ports}"))
            .env("STOKEHOLD_TOKEN_FILE", data.join("admin.token"))
            .env("STOKEHOLD_CA_FILE", base.path().join("pki/ca.pem"))
            .output()
            .expect("stokehold runs");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8(said).expect("UTF-8"),
        )
    };
    let until = |what: &str| {
        eventually(what, || {
            readyz(ports + 1).filter(|said| said.contains(what))
        });
    };

    let mut scheduler = start();
    until("ready\n");
    let model = base.path().join("model");
    std::fs::create_dir(&model).expect("folder");
    std::fs::write(model.join("weights.bin"), vec![7; 1 << 20]).expect("model");
    let model = model.display().to_string();
    let (pushed, said) = cli(&["model", "push", &model, "--name", "kept"]);
    assert!(pushed, "{said}");

    disk.fill();
    until("no room in");
    // Twice: what others wrote took the place of the reserve, too.
    disk.fill();
    for change in [
        &["token", "create", "x", "--role", "query"][..],
        &["model", "push", &model, "--name", "more"],
    ] {
        let (done, said) = cli(change);
        assert!(!done, "{said}");
        assert!(said.contains("HTTP 507"), "{said}");
        assert!(said.contains(&data.display().to_string()), "{said}");
        assert!(
            said.contains("are needed") && said.contains("`data_dir`"),
            "{said}"
        );
    }
    let (listed, said) = cli(&["model", "list"]);
    assert!(listed && said.contains("kept/1"), "{said}");

    // A restart on the full disk says why it cannot be, and goes on from what was there after it.
    drop(scheduler);
    scheduler = start();
    let ended = eventually("it has ended", || scheduler.0.try_wait().expect("asked"));
    assert!(!ended.success());
    let text = std::fs::read_to_string(&log).expect("log");
    assert!(text.contains("error: no room in"), "{text}");

    disk.empty();
    let _scheduler = start();
    until("ready\n");
    let (listed, said) = cli(&["model", "list"]);
    assert!(listed && said.contains("kept/1"), "{said}");
    assert!(!said.contains("more"), "{said}");
    disk.fill();
    until("no room in");
    disk.empty();
    until("ready\n");
    let (created, said) = cli(&["token", "create", "x", "--role", "query"]);
    assert!(created, "{said}");
}

#[test]
fn full_disks_of_a_node_are_told_while_requests_go_on_and_work_goes_on_with_room() {
    let mut cluster = Cluster::start();
    for text in [
        "the ledger cannot be written, nothing is changed until it can",
        "routes were not written to disk, trying on",
        "action failed, trying again later",
        "no replica of three-1 can be placed",
        // Of the daemons that are killed to take their drop-ins.
        "session ended",
        "node lost",
        "connection lost",
        "no session with the scheduler",
    ] {
        cluster.announce(text);
    }
    let disk = |name: &str, options: &str| SmallDisk::mount(&cluster.base().join(name), options);
    let (of_gateway, of_agent, of_logs, of_cache) = (
        disk("gw", "size=2m,mode=0777"),
        disk("ag", "size=2m,mode=0700"),
        disk("lg", "size=4m,mode=0711"),
        disk("ca", "size=24m,mode=0700"),
    );
    // Drop-ins, as an operator would move folders elsewhere.
    let logs = of_logs.path("r");
    let drop_in = |daemon: &str, text: String| {
        let folder = cluster.data().join(format!("config/{daemon}.d"));
        std::fs::create_dir(&folder).expect("folder");
        std::fs::write(folder.join("50-disks.toml"), text).expect("drop-in");
    };
    drop_in(
        "gateway",
        format!(
            "state_dir = {:?}\nlog_dir = {logs:?}\n",
            of_gateway.path("s")
        ),
    );
    drop_in(
        "agent",
        format!(
            "state_dir = {:?}\ncache_dir = {:?}\nlog_dir = {logs:?}\n",
            of_agent.path("s"),
            of_cache.path("m")
        ),
    );
    let admin = |which: &str| {
        let (_, config) = cluster.config_of(which);
        let listen = config["admin_listen"].as_str().expect("text").to_owned();
        let port = listen.rsplit_once(':').expect("a port").1.parse::<u16>();
        port.expect("a number")
    };
    let (agent_port, gateway_port) = (admin("agent"), admin("gateway"));
    cluster.kill_and_wait("agent");
    cluster.kill_and_wait("gateway");
    let until = |port: u16, what: &str| {
        let is = |said: &String| said.contains(what) && (what != "ready\n" || said == what);
        eventually(what, || readyz(port).filter(is));
    };
    until(agent_port, "ready\n");
    until(gateway_port, "ready\n");
    cluster.deploy_probe("one", &json!({}), &[]);
    let one = json!({"inputs": [[1, 2]]});
    assert_eq!(cluster.query("one", &one).status, 200);

    for disk in [&of_gateway, &of_agent, &of_logs] {
        disk.fill();
    }
    let model = cluster.push_probe("two", "1", &json!({}));
    cluster.cli(&[
        "deploy",
        "two",
        "--model",
        &model,
        "--runtime",
        "probe",
        "--no-wait",
    ]);
    until(agent_port, "not ready: write the ledger");
    until(
        gateway_port,
        "ready\na restart without a scheduler would serve older routes: write",
    );
    eventually("describe says why nothing is started", || {
        let said = cluster.describe("two").to_string();
        let told = said.contains("nothing is started on this node: write the ledger")
            && said.contains(&of_agent.0.display().to_string());
        told.then_some(())
    });
    // A log that has no room holds nobody up.
    let noisy = json!({"inputs": [[1, 2]], "params": {"log": "x".repeat(10_000)}});
    for _ in 0..20 {
        assert_eq!(cluster.query("one", &noisy).status, 200);
    }

    for disk in [&of_gateway, &of_agent, &of_logs] {
        disk.empty();
    }
    until(agent_port, "ready\n");
    until(gateway_port, "ready\n");
    eventually("the second endpoint serves", || {
        (cluster.query("two", &one).status == 200).then_some(())
    });

    // A model that the cache's disk has no room for.
    let folder = cluster.probe_model("three", "1", &json!({}));
    let weights: Vec<u8> = (0..30_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    std::fs::write(folder.join("weights.bin"), weights).expect("weights");
    let folder = folder.display().to_string();
    cluster.cli(&["model", "push", &folder, "--name", "three"]);
    cluster.cli(&[
        "deploy",
        "three",
        "--model",
        "three/1",
        "--runtime",
        "probe",
        "--no-wait",
    ]);
    eventually("describe says what does not fit", || {
        let said = cluster.describe("three").to_string();
        let told = said.contains("on the disk of its model cache for a model of")
            && said.contains("move cache_dir in its agent.toml");
        told.then_some(())
    });
    assert_eq!(cluster.query("one", &one).status, 200);
    nix::mount::mount(
        None::<&str>,
        &of_cache.0,
        None::<&str>,
        nix::mount::MsFlags::MS_REMOUNT,
        Some("size=96m"),
    )
    .expect("a larger disk");
    eventually("the third endpoint serves", || {
        (cluster.query("three", &one).status == 200).then_some(())
    });

    for endpoint in ["one", "two", "three"] {
        cluster.cli(&["delete", endpoint]);
    }
    // What finish() looks for is below the cluster's folder; these are the test's own.
    cluster.cli(&[
        "down",
        "--keep-data",
        "--data",
        &cluster.data().display().to_string(),
    ]);
    drop((of_gateway, of_agent, of_logs, of_cache));
    for daemon in ["gateway", "agent"] {
        let folder = cluster.data().join(format!("config/{daemon}.d"));
        std::fs::remove_dir_all(folder).expect("drop-ins");
    }
    cluster.up();
    cluster.finish();
}
