//! Runtime templates from their folders.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use daemon::config::ConfigError;
use shared::ids::RuntimeName;
use shared::runtime::{InvalidTemplate, RuntimeTemplate};

/// Templates are a page of text.
const MAX_TEMPLATE_BYTES: u64 = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("runtime template {} is over the limit of {MAX_TEMPLATE_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// It names file, line and key.
    #[error("runtime template: {0}")]
    Parse(ConfigError),
    #[error("{}", path.display())]
    Invalid {
        path: PathBuf,
        #[source]
        source: InvalidTemplate,
    },
    #[error("{} and {} are both of the runtime {name}", first.display(), second.display())]
    Twice {
        name: RuntimeName,
        first: PathBuf,
        second: PathBuf,
    },
}

/// All templates; one of a later folder replaces that of the same name. A folder that does not
/// exist holds none.
pub(crate) fn load(
    folders: &[PathBuf],
) -> Result<BTreeMap<RuntimeName, RuntimeTemplate>, TemplateError> {
    let mut all = BTreeMap::new();
    for folder in folders {
        let mut from: BTreeMap<RuntimeName, PathBuf> = BTreeMap::new();
        for path in files(folder)? {
            let template = read(&path)?;
            let name = template.name.clone();
            if let Some(first) = from.insert(name.clone(), path.clone()) {
                let second = path;
                return Err(TemplateError::Twice {
                    name,
                    first,
                    second,
                });
            }
            all.insert(name, template);
        }
    }
    Ok(all)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, TemplateError> {
    let failed = |source| TemplateError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<RuntimeTemplate, TemplateError> {
    let failed = |source| TemplateError::Read {
        path: path.to_owned(),
        source,
    };
    let path = path.to_owned();
    if std::fs::metadata(&path).map_err(failed)?.len() > MAX_TEMPLATE_BYTES {
        return Err(TemplateError::TooLarge { path });
    }
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let template: RuntimeTemplate =
        daemon::config::parse(&path, &text).map_err(TemplateError::Parse)?;
    match template.check() {
        Ok(()) => Ok(template),
        Err(source) => Err(TemplateError::Invalid { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = r#"
        name = "echo"
        image = "example:1"
        command = ["/serve"]
        [health]
        path = "/ping"
        [resources]
        memory_bytes = 67108864
        cpu_millis = 100
    "#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("writes");
        }
        folder
    }

    #[test]
    fn a_later_folder_wins_and_a_missing_one_is_empty() {
        let first = folder(&[("echo.toml", TEMPLATE), ("notes.txt", "no template")]);
        let second = folder(&[("echo.toml", &TEMPLATE.replace("example:1", "example:2"))]);
        let missing = PathBuf::from("/nonexistent/runtimes");
        let folders = [first.path().into(), second.path().into(), missing];
        let loaded = load(&folders).expect("loads");
        let name = RuntimeName::parse("echo").expect("valid");
        assert_eq!(loaded[&name].image.as_str(), "example:2");
    }

    #[test]
    fn a_broken_template_names_its_file_and_key() {
        let unknown = TEMPLATE.replace("command", "comand");
        let unsupported = TEMPLATE.replace("command", "transport = \"tcp\"\ncommand");
        for (text, expected) in [(unknown, "comand"), (unsupported, "transport")] {
            let broken = folder(&[("echo.toml", &text)]);
            let error = load(&[broken.path().into()]).expect_err("is refused");
            let text = daemon::telemetry::Chain(&error).to_string();
            assert!(
                text.contains("echo.toml") && text.contains(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn two_templates_of_one_name_in_a_folder_are_refused() {
        let twice = folder(&[("a.toml", TEMPLATE), ("b.toml", TEMPLATE)]);
        let error = load(&[twice.path().into()]).expect_err("is refused");
        assert!(matches!(error, TemplateError::Twice { .. }), "{error}");
    }
}
