//! Gives root up for good, and shields the drain from signals.

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

/// Becomes `uid`/`gid` with no way back. Whoever is not root may only stay who they are (tests).
pub(crate) fn drop_to(uid: u32, gid: u32) -> Result<(), (&'static str, nix::Error)> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if geteuid().is_root() {
        setgroups(&[]).map_err(|errno| ("setgroups", errno))?;
    }
    setresgid(gid, gid, gid).map_err(|errno| ("setresgid", errno))?;
    setresuid(uid, uid, uid).map_err(|errno| ("setresuid", errno))?;
    prctl::set_no_new_privs().map_err(|errno| ("PR_SET_NO_NEW_PRIVS", errno))?;
    prctl::set_dumpable(false).map_err(|errno| ("PR_SET_DUMPABLE", errno))?;
    umask(Mode::S_IWGRP | Mode::S_IRWXO);

    // The shim ends its logger with SIGTERM when the replica is gone, while its last words may still be
    // in the pipe: the pipes' end is what ends us. (SIGKILL follows if that does not come.) And a
    // file size limit is to be a write error.
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
    ] {
        signals.add(signal);
    }
    signals
        .thread_block()
        .map_err(|errno| ("block signals", errno))
}
