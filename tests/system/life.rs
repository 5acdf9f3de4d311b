//! The life of the .deb packages on one machine, from `dpkg -i` to `dpkg --purge`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::machine::{CGROUPS, Machine, clear_group};
use crate::root::{host, repository, target, unpack};

/// What is passed to curl: the token goes by a file, never by an argument.
const ASK: &str = "curl --silent --show-error --max-time 30 --cacert /root/ca.pem \
    --header @/root/authorization --header 'Content-Type: application/json' \
    --data '{\"inputs\": [[1, 2]]}' https://n1:8443/serving-endpoints/adder/invocations";
/// How long connections may be refused while a gateway is replaced. It took a second or less wherever
/// this was run; the limit is for machines that do other things meanwhile.
const REFUSED_AT_MOST: Duration = Duration::from_secs(15);

struct Steps(Instant);

impl Steps {
    fn begin(&self, what: &str) {
        eprintln!("{:>6.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

#[test]
fn packages_are_installed_joined_used_upgraded_removed_and_purged() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test boots a machine and needs root"
    );
    let steps = Steps(Instant::now());
    let folder = target().join("system");
    std::fs::create_dir_all(&folder).expect("folder");
    let base = tempfile::Builder::new()
        .prefix("machine")
        .tempdir_in(&folder)
        .expect("folder");
    let root = base.path().join("root");
    let packages = root.join("var/tmp/packages");

    steps.begin("unpack a Debian");
    unpack(&root);
    steps.begin("build the packages anew, as revision 2");
    place(&target().join("packages"), "1", &packages);
    let rebuilt = base.path().join("rebuilt");
    host(
        Command::new(repository().join("packaging/packages.sh"))
            .env("PKG_REVISION", "2")
            .env("PACKAGES_OUT", &rebuilt)
            .env("PACKAGES_KINDS", "deb")
            .env("PACKAGES_FAST", "1"),
    );
    place(&rebuilt, "2", &packages);
    let image = target().join("images/runtime-probe.oci.tar");
    std::fs::copy(image, root.join("var/tmp/probe.oci.tar")).expect("make images");

    steps.begin("boot");
    // Dropped after the machine, whose groups they are.
    let groups = Groups;
    let machine = Machine::boot(&root, "n1");
    steps.begin("install");
    install(&machine);
    steps.begin("ask systemd about the units");
    units(&machine);
    steps.begin("join");
    join(&machine);
    steps.begin("deploy");
    deploy(&machine);
    steps.begin("rotate the authority");
    rotate(&machine);
    steps.begin("restart the agent under load");
    let load = Load::start(&machine);
    machine.run("systemctl restart stokehold-agent");
    load.end().none_failed();
    steps.begin("upgrade the scheduler under load");
    let before = Replica::of(&machine);
    let daemons = pids(&machine);
    let load = Load::start(&machine);
    machine.run("dpkg -i /var/tmp/packages/stokehold_0.1.0-2_*.deb /var/tmp/packages/stokehold-scheduler_0.1.0-2_*.deb");
    machine.run("systemctl is-active stokehold-scheduler");
    load.end().none_failed();
    steps.begin("upgrade the node under load");
    let load = Load::start(&machine);
    machine.run("dpkg -i /var/tmp/packages/stokehold-node_0.1.0-2_*.deb");
    machine.run("systemctl is-active stokehold-agent stokehold-gateway");
    let refused = load.end().refused_only();
    steps.begin(&format!("connections were refused for {refused:?}"));
    upgraded(&machine, &before, &daemons);
    steps.begin("remove the node's package");
    remove_node(&machine);
    steps.begin("remove and purge everything");
    purge(&machine);
    steps.begin("power off");
    drop(machine);
    groups.assert_no_replicas();
    steps.begin("done");
}

/// The control groups' parent that the operator of this machine has set: with cgroup v1 the groups lie in
/// the host's hierarchies, and must not be anybody else's.
fn cgroup_parent() -> String {
    format!("/stokehold-packages-{}", std::process::id())
}

fn place(from: &Path, revision: &str, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for name in ["stokehold", "stokehold-node", "stokehold-scheduler"] {
        let file = format!("{name}_0.1.0-{revision}_amd64.deb");
        let found = from.join(&file);
        std::fs::copy(&found, to.join(&file))
            .unwrap_or_else(|e| panic!("{}: {e}: make packages", found.display()));
    }
}

fn install(machine: &Machine) {
    let said = machine.run("dpkg -i /var/tmp/packages/*_0.1.0-1_*.deb 2>&1");
    assert!(said.contains("stokehold-agent join --token-file"), "{said}");
    // The scheduler runs; a node that has not joined is inactive, and says why.
    machine.run("systemctl is-enabled stokehold-scheduler stokehold-agent stokehold-gateway");
    machine.run("systemctl is-active stokehold-scheduler");
    for unit in ["stokehold-agent", "stokehold-gateway"] {
        let state = machine.run(&format!(
            "systemctl show --property ActiveState --property ConditionResult --value {unit}"
        ));
        assert_eq!(state, "inactive\nno", "{unit}");
        let told = machine.output(Duration::from_secs(30), &format!("systemctl status {unit}"));
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(
            told.contains("(ConditionPathExists=/etc/stokehold/pki/"),
            "{told}"
        );
    }
    let owners = machine.run(
        "stat --format '%U:%G %a %n' /etc/stokehold /etc/stokehold/pki /etc/stokehold/pki/* \
         /var/lib/stokehold /var/lib/stokehold/* /var/log/stokehold/replicas /run/stokehold/default",
    );
    let expected = "\
root:root 755 /etc/stokehold
root:root 755 /etc/stokehold/pki
root:root 700 /etc/stokehold/pki/agent
stokehold-gateway:stokehold-gateway 700 /etc/stokehold/pki/gateway
stokehold-scheduler:stokehold-scheduler 700 /etc/stokehold/pki/scheduler
root:root 755 /var/lib/stokehold
root:root 700 /var/lib/stokehold/agent
stokehold-gateway:stokehold-gateway 700 /var/lib/stokehold/gateway
root:root 700 /var/lib/stokehold/models
stokehold-scheduler:stokehold-scheduler 700 /var/lib/stokehold/scheduler
root:root 755 /var/log/stokehold/replicas
root:stokehold-gateway 750 /run/stokehold/default";
    assert_eq!(owners, expected);
    let missing = machine.run(
        "for f in $(dpkg -L stokehold stokehold-node stokehold-scheduler); do \
            [ -e \"$f\" ] || echo \"$f\"; done",
    );
    assert_eq!(missing, "", "files that the packages list are not there");
    machine.run(
        "gzip --test /usr/share/man/man1/stokehold-deploy.1.gz && bash -n /usr/share/bash-completion/completions/stokehold",
    );
}

/// Nothing that systemd does not understand, and no more rights than these units need.
fn units(machine: &Machine) {
    let said =
        machine.run("systemd-analyze verify /usr/lib/systemd/system/stokehold-*.service 2>&1");
    assert_eq!(said, "", "systemd-analyze verify");
    for (unit, most) in [("agent", 7.5), ("gateway", 1.5), ("scheduler", 1.5)] {
        let said = machine.run(&format!(
            "systemd-analyze security --no-pager stokehold-{unit} | tail -n 1"
        ));
        eprintln!("          {said}");
        let exposure: f64 = said
            .split_whitespace()
            .find_map(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no figure in {said}"));
        assert!(exposure <= most, "{unit}: {exposure} is above {most}");
    }
}

fn join(machine: &Machine) {
    machine.run(
        "cp /etc/stokehold/pki/scheduler/ca.pem /root/ca.pem && \
         stokehold context set local --server https://n1:7443 --gateway https://n1:8443 \
            --ca-file /root/ca.pem --token-file /var/lib/stokehold/scheduler/admin.token && \
         stokehold context use local && \
         (printf 'Authorization: Bearer '; cat /var/lib/stokehold/scheduler/admin.token) >/root/authorization",
    );
    let edit = format!("cgroup_parent = \"{}\"", cgroup_parent());
    machine.run(&format!(
        "echo '{edit}' >>/etc/stokehold/agent.toml && stokehold-agent --check-config"
    ));
    machine.run(
        "umask 077 && stokehold node token >/root/join.token && \
         stokehold-agent join --token-file /root/join.token && \
         stokehold-gateway join --token-file /root/join.token && rm /root/join.token",
    );
    let key = machine.run("stat --format '%U %a' /etc/stokehold/pki/gateway/key.pem");
    assert_eq!(key, "stokehold-gateway 600");
    // Type=notify: this returns when both are ready.
    machine.run("systemctl start stokehold-agent stokehold-gateway");
    machine.run("systemctl is-active containerd stokehold-agent stokehold-gateway");
    machine.eventually(
        "the node is connected",
        "stokehold node list --output json | jq -e '.nodes[0] | .state == \"ready\" and .cpu_millis and .gateway_connected'",
    );
}

fn deploy(machine: &Machine) {
    machine.run(
        "stokehold image import /var/tmp/probe.oci.tar && mkdir -p /root/adder && \
         echo '{}' >/root/adder/probe.json && echo 1 >/root/adder/VERSION && \
         stokehold model push /root/adder --name adder && \
         stokehold deploy adder --model adder/1 --runtime probe",
    );
    answers(machine);
    complaints(machine);
}

fn complaints(machine: &Machine) {
    let logged = machine.run(
        "journalctl --no-pager --quiet --output=cat --unit 'stokehold-*' | grep -E ' (WARN|ERROR) ' || true",
    );
    assert_eq!(logged, "", "daemons complained");
}

/// Each daemon keeps a new certificate, under what its unit lets it write.
fn rotate(machine: &Machine) {
    let keys = "stat --format '%U:%G %a %n' /etc/stokehold/pki/*/cert.pem";
    let owners = machine.run(keys);
    machine.run("stokehold ca rotate");
    machine.eventually(
        "every certificate is of the new authority",
        "stokehold ca finish",
    );
    machine.eventually(
        "the rotation has ended",
        "stokehold ca status --output json | jq -e '.phase == \"steady\"'",
    );
    assert_eq!(machine.run(keys), owners, "the identities' owners");
    answers(machine);
    complaints(machine);
}

fn answers(machine: &Machine) {
    let answer = machine.run(&format!("{ASK} | jq '.predictions == [3]'"));
    assert_eq!(answer, "true");
}

/// The first process of the one replica, by number and start: the same only if it never ended.
#[derive(Debug, PartialEq)]
struct Replica(String);

impl Replica {
    fn of(machine: &Machine) -> Self {
        let found = machine.run(
            "pid=$(ctr -n stokehold task list | awk '$3 == \"RUNNING\" {print $2}') && \
             echo \"$pid started $(cut -d ' ' -f 22 /proc/$pid/stat)\"",
        );
        assert_eq!(found.lines().count(), 1, "{found}");
        Self(found)
    }
}

fn pids(machine: &Machine) -> Vec<String> {
    let pids = machine.run(
        "systemctl show --property MainPID --value stokehold-agent stokehold-gateway stokehold-scheduler",
    );
    pids.split_whitespace().map(str::to_owned).collect()
}

fn upgraded(machine: &Machine, before: &Replica, daemons: &[String]) {
    let versions = machine.run(
        "dpkg-query --show --showformat '${Package} ${Version} ${db:Status-Status}\\n' 'stokehold*'",
    );
    let expected = "\
stokehold 0.1.0-2 installed
stokehold-node 0.1.0-2 installed
stokehold-scheduler 0.1.0-2 installed";
    assert_eq!(versions, expected);
    for (old, new) in daemons.iter().zip(pids(machine)) {
        assert!(
            *old != new && new != "0",
            "a daemon was not restarted: {old} {new}"
        );
    }
    assert_eq!(Replica::of(machine), *before, "the replica was replaced");
    answers(machine);
    let kept =
        machine.run("grep -c '^cgroup_parent = \"/stokehold-packages-' /etc/stokehold/agent.toml");
    assert_eq!(kept, "1", "what the operator wrote");
    // Root's commands leave the daemon's files to the daemon.
    machine.run(
        "systemctl stop stokehold-scheduler && stokehold-scheduler reset-admin-token && \
         systemctl start stokehold-scheduler && stokehold list",
    );
    let held = machine.run("journalctl --no-pager --quiet --output=cat --unit stokehold-agent | grep -c 'adopted the replicas'");
    assert_eq!(held, "3", "each start adopts");
}

fn remove_node(machine: &Machine) {
    let said = machine.run("dpkg --remove stokehold-node 2>&1");
    assert!(said.contains("removed 1 replicas"), "{said}");
    let left = machine.run(
        "pgrep --list-name '^stokehold-(agent|gatew|logsh|probe)' || true; \
         ctr -n stokehold container list --quiet; ctr -n stokehold task list --quiet; \
         grep /run/stokehold /proc/mounts || true; find /run/stokehold 2>/dev/null || true",
    );
    assert_eq!(left, "", "a removed node's leftovers");
    // What a removal keeps, for when the package comes back.
    machine.run("test -e /etc/stokehold/agent.toml -a -e /etc/stokehold/pki/agent/key.pem -a -d /var/lib/stokehold/models");
    machine.run("ctr -n stokehold image list --quiet | grep runtime-probe");
}

fn purge(machine: &Machine) {
    machine.run("dpkg --remove stokehold-scheduler && dpkg --purge stokehold stokehold-node stokehold-scheduler 2>&1");
    let left = machine.run(
        "for f in /etc/stokehold /var/lib/stokehold /run/stokehold /var/log/stokehold /usr/share/stokehold \
            /usr/libexec/stokehold /usr/bin/stokehold*; do [ ! -e \"$f\" ] || find \"$f\"; done; \
         find /etc/systemd /usr/lib/systemd /var/lib/systemd -name '*stokehold*'; \
         systemctl list-units --all --plain --no-legend 'stokehold*'; \
         systemctl list-unit-files --no-legend 'stokehold*' || true; \
         pgrep --list-name '^stokehold-' || true; \
         ctr namespaces list --quiet; \
         dpkg-query --show 'stokehold*' 2>/dev/null || true",
    );
    assert_eq!(left, "", "what a purge left");
}

/// The control groups of the machine's replicas: with cgroup v1 they are in the host's hierarchies.
struct Groups;

impl Groups {
    fn everywhere() -> Vec<PathBuf> {
        let parent = cgroup_parent();
        let hierarchies = std::fs::read_dir(CGROUPS).into_iter().flatten().flatten();
        hierarchies
            .map(|hierarchy| hierarchy.path().join(parent.trim_start_matches('/')))
            .filter(|group| group.exists())
            .collect()
    }

    fn assert_no_replicas(&self) {
        for parent in Self::everywhere() {
            for entry in std::fs::read_dir(parent.join("default"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let is_group = entry.file_type().is_ok_and(|kind| kind.is_dir());
                assert!(
                    !is_group,
                    "a replica's group is left: {}",
                    entry.path().display()
                );
            }
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        Self::everywhere()
            .iter()
            .for_each(|group| clear_group(group));
    }
}

/// Requests one after the other, each over a connection of its own, for as long as something happens.
struct Load<'a> {
    machine: &'a Machine,
    child: std::process::Child,
}

/// When a request began, in milliseconds, and how it ended: curl's exit code and the status.
#[derive(Debug)]
struct Request {
    at_ms: u64,
    exit: String,
    status: String,
}

struct Outcome(Vec<Request>);

impl<'a> Load<'a> {
    fn start(machine: &'a Machine) -> Self {
        let script = format!(
            "rm -f /root/load.*; while [ ! -e /root/load.stop ]; do \
                at=$(date +%s%3N); rc=0; \
                status=$({ASK} --output /root/load.answer --write-out '%{{http_code}}' 2>>/root/load.errors) || rc=$?; \
                echo \"$at $rc $status\" >>/root/load.log; \
             done; touch /root/load.ended"
        );
        let child = machine.spawn(Duration::from_secs(600), &script);
        machine.eventually("requests are answered", "grep -q ' 0 200$' /root/load.log");
        Self { machine, child }
    }

    /// Goes on until requests are answered again, and some more.
    fn end(mut self) -> Outcome {
        self.machine.eventually(
            "requests are answered again",
            "[ \"$(tail -n 5 /root/load.log | grep -c ' 0 200$')\" = 5 ]",
        );
        self.machine.run("touch /root/load.stop");
        let _ = self.child.wait();
        let log = self.machine.run("cat /root/load.log");
        let requests = log.lines().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [at, exit, status] = words[..] else {
                panic!("{line}")
            };
            Request {
                at_ms: at.parse().expect("a time"),
                exit: exit.to_owned(),
                status: status.to_owned(),
            }
        });
        let outcome = Outcome(requests.collect());
        eprintln!("          {} requests", outcome.0.len());
        outcome
    }
}

impl Outcome {
    fn none_failed(&self) {
        for request in &self.0 {
            assert!(
                request.exit == "0" && request.status == "200",
                "{request:?}"
            );
        }
    }

    /// Every request is answered, or was refused a connection (curl's exit code 7) within one short time.
    /// Returns how long that was.
    fn refused_only(&self) -> Duration {
        let refused: Vec<&Request> = self.0.iter().filter(|r| r.exit == "7").collect();
        for request in self.0.iter().filter(|r| r.exit != "7") {
            assert!(
                request.exit == "0" && request.status == "200",
                "{request:?}"
            );
        }
        let (Some(first), Some(last)) = (refused.first(), refused.last()) else {
            return Duration::ZERO;
        };
        let time = Duration::from_millis(last.at_ms - first.at_ms);
        assert!(
            time < REFUSED_AT_MOST,
            "connections were refused for {time:?}"
        );
        time
    }
}
