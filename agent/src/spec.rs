//! A planned replica as an OCI runtime spec. Pure.
//!
//! What always holds of a spec made here: a user of its own, no capability in any set, no new
//! privileges, a read-only root, a seccomp filter that denies by default, new namespaces of every kind
//! but user (a network namespace with nothing but loopback, or the one that was made for it), limits on memory, swap, CPU and
//! processes, and nothing of the host but the model (read-only) and the replica's folder.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
    LinuxDeviceCgroupBuilder, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, LinuxSeccomp, Mount, MountBuilder,
    PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    User, UserBuilder,
};
use shared::ids::ReplicaId;
use shared::plan::{PlannedImage, PlannedReplica};
use shared::runtime::{REPLICA_FOLDER, Resources, Transport};

use crate::environment::{self, EnvironmentError};

/// The period of the CPU quota, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Open files of a replica, where the machine allows as many.
pub const OPEN_FILES: u64 = 65_536;
/// Before everything of the system that is not told otherwise.
const OOM_SCORE_ADJ: i32 = 100;
/// Folders that a model may not be mounted on or below: they carry the container's own protections.
const RESERVED: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];
const SECCOMP: &str = include_str!("seccomp.json");

/// What a spec depends on beside the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecContext {
    /// The host's path of the model's published view.
    pub model_dir: PathBuf,
    /// The host's path of the replica's folder.
    pub folder: PathBuf,
    pub uid: u32,
    pub cgroups: CgroupLayout,
    /// `cgroup_parent`.
    pub cgroup_parent: String,
    pub instance: String,
    /// Its network namespace, where it has an interface; else runc makes one.
    pub netns: Option<PathBuf>,
    /// For `/etc/resolv.conf`, where it may ask resolvers.
    pub resolv_conf: Option<PathBuf>,
    /// [`OPEN_FILES`], or less where this machine's services may not raise their limits.
    pub open_files: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    V1 {
        /// Whether the kernel counts swap per group; asking for a limit fails where it does not.
        swap: bool,
    },
    V2,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("command is empty or holds a zero byte")]
    Command,
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error("a replica must not run as root")]
    Root,
    #[error(
        "model_mount {path:?} must be an absolute path that lies in none of {}",
        RESERVED.join(", ")
    )]
    ModelMount { path: String },
    #[error("transport \"tcp\" needs a port from 1024 on, and only that")]
    Port,
    #[error("it needs an interface, but has no network namespace")]
    NoInterface,
    #[error("{gpus} GPUs are asked for, but this agent gives none out: set gpus = 0")]
    Gpus { gpus: u32 },
    #[error("{problem}")]
    Resources { problem: &'static str },
}

pub fn render(
    replica: &PlannedReplica,
    image: &PlannedImage,
    context: &SpecContext,
) -> Result<Spec, SpecError> {
    check(replica)?;
    if context.uid == 0 {
        return Err(SpecError::Root);
    }
    if replica.container.needs_interface() != context.netns.is_some() {
        return Err(SpecError::NoInterface);
    }
    let environment = environment::of(replica, image)?;
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(root())
        .hostname(replica.id.to_string())
        .process(process(replica, environment, context))
        .mounts(mounts(replica, context))
        .linux(linux(replica, context))
        .build()
        .expect("every part is given");
    Ok(spec)
}

/// Where a replica's control group lies, as `cgroupsPath` has it.
pub fn cgroups_path(parent: &str, instance: &str, replica: &ReplicaId) -> PathBuf {
    Path::new(parent).join(instance).join(replica.as_str())
}

fn check(replica: &PlannedReplica) -> Result<(), SpecError> {
    let container = &replica.container;
    let command = &container.command;
    if command.first().is_none_or(|program| program.is_empty())
        || command.iter().any(|argument| argument.contains('\0'))
    {
        return Err(SpecError::Command);
    }
    let mount = Path::new(&container.model_mount);
    let plain = mount.is_absolute()
        && mount.components().count() > 1
        && !container.model_mount.contains('\0')
        && !mount
            .components()
            .any(|part| part == std::path::Component::ParentDir);
    if !plain || RESERVED.iter().any(|folder| mount.starts_with(folder)) {
        return Err(SpecError::ModelMount {
            path: container.model_mount.clone(),
        });
    }
    match (container.transport, container.port) {
        (Transport::Unix, None) => {}
        (Transport::Tcp, Some(port)) if port >= 1024 => {}
        (Transport::Unix | Transport::Tcp, _) => return Err(SpecError::Port),
    }
    if container.resources.gpus > 0 {
        let gpus = container.resources.gpus;
        return Err(SpecError::Gpus { gpus });
    }
    match container.resources.problem() {
        Some(problem) => Err(SpecError::Resources { problem }),
        None => Ok(()),
    }
}

fn root() -> oci_spec::runtime::Root {
    RootBuilder::default()
        .path("rootfs")
        .readonly(true)
        .build()
        .expect("every part is given")
}

fn process(replica: &PlannedReplica, environment: Vec<String>, context: &SpecContext) -> Process {
    let limit = |kind, value| {
        PosixRlimitBuilder::default()
            .typ(kind)
            .soft(value)
            .hard(value)
            .build()
            .expect("every part is given")
    };
    ProcessBuilder::default()
        .terminal(false)
        .user(user(context.uid))
        .args(replica.container.command.clone())
        .env(environment)
        .cwd("/")
        .capabilities(no_capabilities())
        .no_new_privileges(true)
        .oom_score_adj(OOM_SCORE_ADJ)
        .rlimits(vec![
            limit(PosixRlimitType::RlimitNofile, context.open_files),
            // A core file would hold a client's data, and has nowhere to go.
            limit(PosixRlimitType::RlimitCore, 0),
        ])
        .build()
        .expect("every part is given")
}

fn user(uid: u32) -> User {
    UserBuilder::default()
        .uid(uid)
        .gid(uid)
        // The gateway, which is not in this group, must be able to connect to the socket whichever way
        // a server makes it; only the gateway can enter the folder that it lies in.
        .umask(0u32)
        .build()
        .expect("every part is given")
}

fn no_capabilities() -> LinuxCapabilities {
    LinuxCapabilitiesBuilder::default()
        .bounding([])
        .effective([])
        .inheritable([])
        .permitted([])
        .ambient([])
        .build()
        .expect("every part is given")
}

fn mount(target: &str, kind: &str, source: impl Into<PathBuf>, options: &[&str]) -> Mount {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source.into())
        .options(
            options
                .iter()
                .map(|&option| option.to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
        .expect("no id mapping is asked for")
}

fn mounts(replica: &PlannedReplica, context: &SpecContext) -> Vec<Mount> {
    let container = &replica.container;
    let shm = format!("size={}", container.shm_bytes);
    let tmp = format!("size={}", container.tmp_bytes);
    let resolv_conf = context.resolv_conf.iter().map(|file| {
        let options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
        mount("/etc/resolv.conf", "bind", file, &options)
    });
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        // Executable: Python packages unpack shared objects there.
        mount(
            "/tmp",
            "tmpfs",
            "tmpfs",
            &["nosuid", "nodev", "mode=1777", &tmp],
        ),
        mount(
            REPLICA_FOLDER,
            "bind",
            &context.folder,
            &["bind", "rprivate", "rw", "nosuid", "nodev", "noexec"],
        ),
        mount(
            &container.model_mount,
            "bind",
            &context.model_dir,
            &["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"],
        ),
    ];
    mounts.extend(resolv_conf);
    mounts
}

fn linux(replica: &PlannedReplica, context: &SpecContext) -> Linux {
    let mut masked = oci_spec::runtime::get_default_maskedpaths();
    masked.extend(
        [
            "/proc/interrupts",
            "/sys/devices/virtual/powercap",
            "/sys/kernel/debug",
            "/sys/kernel/security",
        ]
        .map(str::to_owned),
    );
    let group = cgroups_path(&context.cgroup_parent, &context.instance, &replica.id);
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
    ];
    match context.cgroups {
        CgroupLayout::V1 { .. } => {}
        CgroupLayout::V2 => kinds.push(LinuxNamespaceType::Cgroup),
    }
    let namespaces: Vec<_> = kinds
        .into_iter()
        .map(|kind| {
            let builder = LinuxNamespaceBuilder::default().typ(kind);
            // Without a path runc makes one, and brings loopback up in a network's.
            let builder = match (kind, &context.netns) {
                (LinuxNamespaceType::Network, Some(path)) => builder.path(path),
                _ => builder,
            };
            builder.build().expect("every part is given")
        })
        .collect();
    LinuxBuilder::default()
        .namespaces(namespaces)
        .cgroups_path(group)
        .resources(resources(&replica.container.resources, context.cgroups))
        .seccomp(seccomp())
        .masked_paths(masked)
        .readonly_paths(oci_spec::runtime::get_default_readonly_paths())
        .rootfs_propagation("private")
        .build()
        .expect("every part is given")
}

fn resources(limits: &Resources, cgroups: CgroupLayout) -> LinuxResources {
    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    let mut memory_limits = LinuxMemoryBuilder::default().limit(memory);
    match cgroups {
        // Memory and swap together: none of it may be swap.
        CgroupLayout::V1 { swap: true } | CgroupLayout::V2 => {
            memory_limits = memory_limits.swap(memory);
        }
        CgroupLayout::V1 { swap: false } => {}
    }
    let cpu = LinuxCpuBuilder::default()
        .shares((u64::from(limits.cpu_millis) * 1024 / 1000).max(2))
        .period(CPU_PERIOD_US)
        .quota(i64::from(limits.cpu_millis) * (CPU_PERIOD_US as i64) / 1000)
        .build()
        .expect("every part is given");
    // runc adds the harmless ones (null, zero, random, tty) by itself.
    let no_devices = LinuxDeviceCgroupBuilder::default()
        .allow(false)
        .access("rwm")
        .build()
        .expect("every part is given");
    LinuxResourcesBuilder::default()
        .devices(vec![no_devices])
        .memory(memory_limits.build().expect("every part is given"))
        .cpu(cpu)
        .pids(
            LinuxPidsBuilder::default()
                .limit(limits.pids)
                .build()
                .expect("every part is given"),
        )
        .build()
        .expect("every part is given")
}

/// The filter that is shipped with this program; `comment`s in it say why.
fn seccomp() -> LinuxSeccomp {
    serde_json::from_str(SECCOMP).expect("the shipped filter is checked by a test")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{planned_image, planned_replica};
    use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompOperator};

    fn context() -> SpecContext {
        SpecContext {
            model_dir: "/var/lib/stokehold/models/views/abc".into(),
            folder: "/run/stokehold/default/0000000000000001".into(),
            uid: 1_990_000_001,
            cgroups: CgroupLayout::V1 { swap: true },
            cgroup_parent: "/stokehold".into(),
            instance: "default".into(),
            netns: None,
            resolv_conf: None,
            open_files: OPEN_FILES,
        }
    }

    fn rendered(context: &SpecContext) -> Spec {
        render(&planned_replica(1), &planned_image(), context).expect("valid")
    }

    #[test]
    fn a_rendered_spec_is_what_it_was() {
        let mut spec = rendered(&context());
        let linux = spec.linux_mut().as_mut().expect("linux");
        linux.set_seccomp(None);
        let text = serde_json::to_string_pretty(&spec).expect("json");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn cgroup_v2_has_a_namespace_of_its_own_and_no_swap_limit_is_asked_where_none_is_counted() {
        let mut context = context();
        context.cgroups = CgroupLayout::V2;
        let text = serde_json::to_string(&rendered(&context)).expect("json");
        assert!(text.contains(r#"{"type":"cgroup"}"#));
        context.cgroups = CgroupLayout::V1 { swap: false };
        let text = serde_json::to_string(&rendered(&context)).expect("json");
        assert!(!text.contains(r#"{"type":"cgroup"}"#) && !text.contains("\"swap\""));
    }

    #[test]
    fn what_would_weaken_the_container_is_refused() {
        let refused = |change: &dyn Fn(&mut PlannedReplica)| {
            let mut replica = planned_replica(1);
            change(&mut replica);
            render(&replica, &planned_image(), &context()).expect_err("refused")
        };
        for path in [
            "/",
            "model",
            "/proc/x",
            "/model/../etc",
            "/run/stokehold",
            "/dev",
            "",
        ] {
            let got = refused(&|r| r.container.model_mount = path.into());
            let want = SpecError::ModelMount { path: path.into() };
            assert_eq!(got, want);
        }
        assert_eq!(
            refused(&|r| r.container.command.clear()),
            SpecError::Command
        );
        assert_eq!(
            refused(&|r| r.container.resources.gpus = 2),
            SpecError::Gpus { gpus: 2 }
        );
        assert_eq!(
            refused(&|r| r.container.transport = Transport::Tcp),
            SpecError::Port
        );
        let listens = |r: &mut PlannedReplica| {
            r.container.transport = Transport::Tcp;
            r.container.port = Some(8080);
        };
        assert_eq!(refused(&listens), SpecError::NoInterface);
        let mut root = context();
        root.uid = 0;
        let refused = render(&planned_replica(1), &planned_image(), &root);
        assert_eq!(refused.expect_err("refused"), SpecError::Root);
    }

    #[test]
    fn one_that_needs_an_interface_gets_the_namespace_made_for_it_and_its_resolvers() {
        let mut context = context();
        context.netns = Some("/run/stokehold/default/netns/1".into());
        context.resolv_conf = Some("/var/lib/stokehold/agent/network/1.resolv.conf".into());
        let mut replica = planned_replica(1);
        replica.container.transport = Transport::Tcp;
        replica.container.port = Some(8080);
        let spec = render(&replica, &planned_image(), &context).expect("valid");
        let text = serde_json::to_string(&spec).expect("json");
        assert!(text.contains(r#"{"type":"network","path":"/run/stokehold/default/netns/1"}"#));
        let mounts = spec.mounts().clone().expect("mounts");
        let mount = mounts
            .iter()
            .find(|m| m.destination() == Path::new("/etc/resolv.conf"));
        let options = mount.expect("mounted").options().clone().expect("options");
        assert!(options.contains(&"ro".to_owned()));
    }

    #[test]
    fn the_filter_denies_by_default_and_allows_nothing_that_leads_out() {
        let filter = seccomp();
        assert_eq!(filter.default_action(), LinuxSeccompAction::ScmpActErrno);
        let rules = filter.syscalls().clone().expect("rules");
        let allowed = |name: &str| {
            rules.iter().any(|rule| {
                rule.action() == LinuxSeccompAction::ScmpActAllow
                    && rule.args().is_none()
                    && rule.names().iter().any(|n| n == name)
            })
        };
        for denied in [
            "mount",
            "umount2",
            "pivot_root",
            "unshare",
            "setns",
            "clone",
            "clone3",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "bpf",
            "perf_event_open",
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
            "io_uring_setup",
            "io_uring_enter",
            "kexec_load",
            "init_module",
            "finit_module",
            "open_by_handle_at",
            "pidfd_getfd",
            "kcmp",
            "reboot",
            "swapon",
            "personality",
            "socket",
            "chroot",
            "mknod",
            "mknodat",
            "setdomainname",
            "sethostname",
            "quotactl",
            "acct",
            "fsopen",
            "fsmount",
            "move_mount",
            "open_tree",
            "mount_setattr",
            "fanotify_init",
            "vmsplice",
            "modify_ldt",
            "iopl",
            "ioperm",
        ] {
            assert!(!allowed(denied), "{denied} is allowed");
        }
        for needed in [
            "read",
            "write",
            "openat",
            "execve",
            "futex",
            "epoll_wait",
            "accept4",
            "mmap",
            "rseq",
            "getrandom",
            "newfstatat",
            "statx",
            "prctl",
            "exit_group",
            "wait4",
            "fork",
            "vfork",
        ] {
            assert!(allowed(needed), "{needed} is not allowed");
        }
        let named: Vec<_> = rules.iter().flat_map(|rule| rule.names()).collect();
        assert!(named.len() > 250, "only {} names", named.len());
    }

    #[test]
    fn clone_makes_processes_and_threads_but_no_namespace() {
        let rules = seccomp().syscalls().clone().expect("rules");
        let clone = rules
            .iter()
            .find(|r| r.names() == &["clone"])
            .expect("clone");
        let args = clone.args().clone().expect("arguments");
        assert_eq!(args[0].op(), LinuxSeccompOperator::ScmpCmpMaskedEq);
        let all_new = 0x0002_0000u64 // mount
            | 0x0200_0000 // cgroup
            | 0x0400_0000 // uts
            | 0x0800_0000 // ipc
            | 0x1000_0000 // user
            | 0x2000_0000 // pid
            | 0x4000_0000 // network
            | 0x0000_0080; // time
        assert_eq!((args[0].value(), args[0].value_two()), (all_new, Some(0)));
        let clone3 = rules.iter().find(|r| r.names() == &["clone3"]);
        let clone3 = clone3.expect("clone3");
        assert_eq!(clone3.errno_ret(), Some(38));
    }
}
