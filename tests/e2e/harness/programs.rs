//! The programs under test, by their shipped names in one folder, as a package would install them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// `(shipped name, binary of this build)`.
const PROGRAMS: [(&str, &str); 5] = [
    ("stokehold", env!("CARGO_BIN_EXE_shim-cli")),
    ("stokehold-agent", env!("CARGO_BIN_EXE_shim-agent")),
    ("stokehold-gateway", env!("CARGO_BIN_EXE_shim-gateway")),
    ("stokehold-scheduler", env!("CARGO_BIN_EXE_shim-scheduler")),
    ("stokehold-logshim", env!("CARGO_BIN_EXE_shim-logshim")),
];

/// Makes `PREFIX/bin` and `PREFIX/share/stokehold/runtimes`, and returns the former. Scheduler and
/// gateway run as users of their own, who may not be able to reach the build folder.
pub(crate) fn install(prefix: &Path) -> PathBuf {
    let bin = prefix.join("bin");
    std::fs::create_dir_all(&bin).expect("folder for programs");
    for (name, built) in PROGRAMS {
        let installed = bin.join(name);
        // A hard link where it can be one: these are large.
        std::fs::hard_link(built, &installed)
            .or_else(|_| std::fs::copy(built, &installed).map(drop))
            .expect("install a program");
    }
    let runtimes = prefix.join("share/stokehold/runtimes");
    std::fs::create_dir_all(&runtimes).expect("folder for runtimes");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/runtimes");
    for template in std::fs::read_dir(shipped)
        .expect("runtimes")
        .map(|e| e.expect("entry"))
    {
        std::fs::copy(template.path(), runtimes.join(template.file_name())).expect("template");
    }
    let open = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(prefix, open).expect("mode");
    bin
}

/// The archive of a runtime image, built by `make images`.
pub(crate) fn images(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target folder");
    let path = target.join("images").join(format!("{name}.oci.tar"));
    assert!(
        path.exists(),
        "{} is missing: run `make images` (or `make test`)",
        path.display()
    );
    path
}
