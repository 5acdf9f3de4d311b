//! Giving up every right, for good, and making sure of it.
#![allow(unsafe_code)]

use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

const MAX_FILES: u64 = 128;
/// Address space: threads and certificates take most of it.
const MAX_MEMORY_BYTES: u64 = 4 << 30;

#[derive(Debug, thiserror::Error)]
pub(super) enum RightsError {
    #[error("{what}")]
    Call {
        what: &'static str,
        #[source]
        source: nix::Error,
    },
    #[error("read /proc/self")]
    Status(#[source] io::Error),
    #[error("{name} is {value:?} after all rights were given up")]
    Left { name: &'static str, value: String },
}

/// Closes what an ancestor may have left open. To be called first of all: afterwards descriptors have
/// owners.
pub(super) fn close_inherited() -> Result<(), RightsError> {
    // SAFETY: closes numbers from 3 on, of which none has an owner yet: this process has opened nothing.
    let closed = unsafe { nix::libc::syscall(nix::libc::SYS_close_range, 3, u32::MAX, 0) };
    match Errno::result(closed) {
        Ok(_) => Ok(()),
        // Kernels before 5.9.
        Err(Errno::ENOSYS) => close_listed(),
        Err(source) => Err(RightsError::Call {
            what: "close_range",
            source,
        }),
    }
}

fn close_listed() -> Result<(), RightsError> {
    let listed = std::fs::read_dir("/proc/self/fd").map_err(RightsError::Status)?;
    let numbers: Vec<i32> = listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in numbers {
        // SAFETY: as above; the list's own descriptor is closed by now, and a second close of it harms
        // nothing, since nothing was opened in between.
        unsafe { nix::libc::close(number) };
    }
    Ok(())
}

/// Becomes somebody who may do nothing but use the network.
pub(super) fn give_up(uid: Uid, gid: Gid) -> Result<(), RightsError> {
    let step = |what| move |source| RightsError::Call { what, source };
    let limit = |resource, value, what| setrlimit(resource, value, value).map_err(step(what));
    setgroups(&[]).map_err(step("setgroups"))?;
    setresgid(gid, gid, gid).map_err(step("setresgid"))?;
    setresuid(uid, uid, uid).map_err(step("setresuid"))?;
    prctl::set_no_new_privs().map_err(step("PR_SET_NO_NEW_PRIVS"))?;
    // Others of the same user must not read the credentials from its memory.
    prctl::set_dumpable(false).map_err(step("PR_SET_DUMPABLE"))?;
    limit(Resource::RLIMIT_CORE, 0, "RLIMIT_CORE")?;
    // Pipes have no size: it can write nowhere else.
    limit(Resource::RLIMIT_FSIZE, 0, "RLIMIT_FSIZE")?;
    limit(Resource::RLIMIT_NOFILE, MAX_FILES, "RLIMIT_NOFILE")?;
    limit(Resource::RLIMIT_AS, MAX_MEMORY_BYTES, "RLIMIT_AS")?;
    check(uid, gid)
}

/// The kernel's own word for it.
fn check(uid: Uid, gid: Gid) -> Result<(), RightsError> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(RightsError::Status)?;
    let four = |id: u32| [id; 4].map(|id| id.to_string()).join("\t");
    let none = "0000000000000000".to_owned();
    let expected = [
        ("Uid", four(uid.as_raw())),
        ("Gid", four(gid.as_raw())),
        ("Groups", String::new()),
        ("CapPrm", none.clone()),
        ("CapEff", none.clone()),
        ("CapAmb", none),
        ("NoNewPrivs", "1".into()),
    ];
    for (name, wanted) in expected {
        let lines = status.lines().filter_map(|line| line.split_once(':'));
        let mut value = lines.filter(|(key, _)| *key == name).map(|(_, v)| v.trim());
        let value = value.next_back().unwrap_or("absent");
        if value != wanted {
            let value = value.to_owned();
            return Err(RightsError::Left { name, value });
        }
    }
    Ok(())
}
