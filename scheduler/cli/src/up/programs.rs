//! Where the daemons, containerd and the runtime templates are.

use std::path::{Path, PathBuf};

use crate::exit::Stop;

/// Beside this program first: a build folder holds all of one version.
const DAEMON_FOLDERS: [&str; 2] = ["/usr/bin", "/usr/libexec/stokehold"];

const SYSTEM_FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// For every child: what they call (runc, mount helpers) is found whatever `sudo` left.
pub(super) fn path_variable() -> String {
    SYSTEM_FOLDERS.join(":")
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Programs {
    pub(super) scheduler: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) gateway: PathBuf,
    pub(super) logshim: PathBuf,
}

impl Programs {
    pub(super) fn find() -> Result<Self, Stop> {
        let own = own_folder();
        let find = |name: &str| {
            let folders = own
                .iter()
                .map(PathBuf::as_path)
                .chain(DAEMON_FOLDERS.iter().map(Path::new));
            look_for(name, folders).ok_or_else(|| {
                let beside = own.as_deref().unwrap_or(Path::new(".")).display();
                Stop::Usage(format!(
                    "{name} is neither beside this program ({beside}) nor in {}: install the \
                     package stokehold, or build it with `cargo build --release`",
                    DAEMON_FOLDERS.join(" or ")
                ))
            })
        };
        Ok(Self {
            scheduler: find("stokehold-scheduler")?,
            agent: find("stokehold-agent")?,
            gateway: find("stokehold-gateway")?,
            logshim: find("stokehold-logshim")?,
        })
    }
}

/// A program of the system.
pub(super) fn system(name: &str) -> Option<PathBuf> {
    look_for(name, SYSTEM_FOLDERS.iter().map(Path::new))
}

/// The folder of runtime templates: the one given, else the first that is there.
pub(super) fn runtimes(given: Option<&Path>) -> Result<PathBuf, Stop> {
    if let Some(given) = given {
        let found = given.canonicalize().ok().filter(|path| path.is_dir());
        return found.ok_or_else(|| Stop::Usage(format!("{} is no folder", given.display())));
    }
    let shipped = Path::new("/usr/share/stokehold/runtimes");
    let beside = own_folder().map(|own| own.join("../share/stokehold/runtimes"));
    beside
        .into_iter()
        .chain([shipped.to_owned()])
        .find_map(|path| path.canonicalize().ok().filter(|path| path.is_dir()))
        .ok_or_else(|| {
            Stop::Usage(format!(
                "no runtime templates: neither ../share/stokehold/runtimes beside this program nor \
                 {} exists; give --runtimes DIR",
                shipped.display()
            ))
        })
}

fn own_folder() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    Some(own.parent()?.to_owned())
}

fn look_for<'a>(name: &str, folders: impl IntoIterator<Item = &'a Path>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| {
            std::fs::metadata(path)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn only_an_executable_file_is_a_program() {
        let first = tempfile::tempdir().expect("folder");
        let second = tempfile::tempdir().expect("folder");
        std::fs::write(first.path().join("x"), "").expect("write");
        std::fs::create_dir(first.path().join("y")).expect("folder");
        let program = second.path().join("x");
        std::fs::write(&program, "").expect("write");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&program, mode).expect("mode");
        let folders = || [first.path(), second.path()];
        assert_eq!(look_for("x", folders()), Some(program));
        assert_eq!(look_for("y", folders()), None);
    }

    #[test]
    fn a_given_folder_of_templates_must_be_there() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(runtimes(Some(folder.path())).is_ok());
        assert!(runtimes(Some(&folder.path().join("no"))).is_err());
    }
}
