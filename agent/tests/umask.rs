//! The service runs under a strict umask. A test of its own, since a umask is the whole process's.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use agent::folder::Folders;
use agent::logs::LogFolders;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Gid;

#[test]
fn a_gateway_that_is_not_root_can_come_to_its_folders_whatever_the_umask() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: folders for others need root");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    umask(Mode::from_bits_truncate(0o077));
    let gateway = Gid::from_raw(65_534);
    let at = |path: &str| folder.path().join(path);
    Folders::open(&at("run/stokehold/default"), gateway).expect("run_dir");
    LogFolders::open(&at("log/stokehold/replicas"), gateway, Path::new("/shim")).expect("log_dir");
    let mode = |path: &str| {
        let metadata = std::fs::metadata(at(path)).expect("made");
        metadata.permissions().mode() & 0o7777
    };
    for path in [
        "run",
        "run/stokehold",
        "log",
        "log/stokehold",
        "log/stokehold/replicas",
    ] {
        assert_eq!(mode(path), 0o755, "{path}");
    }
    assert_eq!(mode("run/stokehold/default"), 0o750);
}
