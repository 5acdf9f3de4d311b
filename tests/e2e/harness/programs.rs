//! The programs under test, by their shipped names in one folder, as a package would install them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `(shipped name, binary of this build)`.
const PROGRAMS: [(&str, &str); 5] = [
    ("stokehold", env!("CARGO_BIN_EXE_shim-cli")),
    ("stokehold-agent", env!("CARGO_BIN_EXE_shim-agent")),
    ("stokehold-gateway", env!("CARGO_BIN_EXE_shim-gateway")),
    ("stokehold-scheduler", env!("CARGO_BIN_EXE_shim-scheduler")),
    ("stokehold-logshim", env!("CARGO_BIN_EXE_shim-logshim")),
];

fn build_folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target folder")
        .to_owned()
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("repository")
        .to_owned()
}

/// The folder with the programs, filled anew by each test process.
pub(crate) fn bin() -> &'static Path {
    static BIN: OnceLock<PathBuf> = OnceLock::new();
    BIN.get_or_init(|| {
        let folder = build_folder().join("e2e-bin");
        std::fs::create_dir_all(&folder).expect("folder for programs");
        for (name, built) in PROGRAMS {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            // A hard link, so that a program's own path is the shipped one.
            std::fs::hard_link(built, &link).expect("link a program");
        }
        folder
    })
}

pub(crate) fn command(program: &str) -> Command {
    Command::new(bin().join(program))
}

/// The archive of a runtime image, built by `make images`.
pub(crate) fn images(name: &str) -> PathBuf {
    let path = build_folder()
        .join("images")
        .join(format!("{name}.oci.tar"));
    assert!(
        path.exists(),
        "{} is missing: run `make images` (or `make test`)",
        path.display()
    );
    path
}
