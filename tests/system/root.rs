//! A Debian root with what the packages depend on, as a user's machine has it. Built once and kept
//! below target/, by its inputs.

use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "bookworm";
/// The dependencies of our packages, and what the test itself works with. A machine of its own has no
/// network, so that nothing can be installed later.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,init-system-helpers,containerd,runc,ca-certificates,\
                        curl,jq,procps";

pub(crate) fn target() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().expect("target folder").to_owned()
}

pub(crate) fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the root").to_owned()
}

/// Runs a program of this machine; its output is shown when it fails.
pub(crate) fn host(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Unpacks a fresh root into `folder`.
pub(crate) fn unpack(folder: &Path) {
    let cache = target().join("system");
    std::fs::create_dir_all(&cache).expect("folder");
    let archive = cache.join("debian.tar");
    let stamp = cache.join("debian.stamp");
    let inputs = format!("{SUITE} {PACKAGES}\n");
    let kept = std::fs::read_to_string(&stamp).unwrap_or_default();
    if kept != inputs || !archive.exists() {
        build(&archive);
        std::fs::write(&stamp, inputs).expect("stamp");
    }
    std::fs::create_dir_all(folder).expect("folder");
    host(
        Command::new("tar")
            .args(["--extract", "--numeric-owner", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(folder),
    );
}

fn build(archive: &Path) {
    let half = archive.with_extension("half.tar");
    let mirror = std::env::var("DEBIAN_MIRROR").ok();
    // The console's output of packages' own scripts is shown only if something fails.
    host(
        Command::new("mmdebstrap")
            .args(["--mode=root", "--variant=minbase"])
            .arg(format!("--include={PACKAGES}"))
            .args(
                ["doc", "locale", "man"]
                    .map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")),
            )
            // The options stay in the root otherwise, and our packages have manuals.
            .arg("--customize-hook=rm \"$1\"/etc/dpkg/dpkg.cfg.d/99mmdebstrap")
            .arg(SUITE)
            .arg(&half)
            .args(mirror),
    );
    std::fs::rename(&half, archive).expect("rename");
}
