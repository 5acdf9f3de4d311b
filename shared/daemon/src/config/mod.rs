//! Configuration files: TOML, unknown keys refused, every key with a default.
//!
//! A daemon's file `NAME.toml` may be followed by drop-ins, `NAME.d/*.toml` beside it, read in the
//! order of their names: a key of a later one wins, tables are merged key by key, and a list is
//! replaced as a whole. So a site, a package or a tool sets what is its own without editing the file.
//!
//! What is wrong is told all at once, each with its file, line and key, what was found there, what is
//! accepted, and an example or the nearest name that exists ([`mistakes`]).

mod mistakes;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use mistakes::Mistake;

/// Configuration files are small; a larger one is not one.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// More drop-ins are not meant to be read by people.
const MAX_DROP_INS: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("configuration file {} is over the limit of {MAX_CONFIG_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} holds {count} drop-ins, over the limit of {MAX_DROP_INS}", folder.display())]
    TooMany { folder: PathBuf, count: usize },
    #[error("{0}")]
    Wrong(Wrong),
}

/// All that is wrong in a configuration.
#[derive(Debug)]
pub struct Wrong {
    found: Vec<(PathBuf, Mistake)>,
    /// What the parts, each by itself right, make no sense of together.
    check: Option<String>,
    files: Vec<PathBuf>,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.found.len() + usize::from(self.check.is_some());
        let mut lines: Vec<String> = self
            .found
            .iter()
            .map(|(path, mistake)| match mistake.line {
                Some(line) => format!("{} line {line}: {}", path.display(), mistake.what),
                None => format!("{}: {}", path.display(), mistake.what),
            })
            .collect();
        lines.extend(self.check.as_ref().map(|what| {
            let files: Vec<String> = self.files.iter().map(|p| p.display().to_string()).collect();
            match files.as_slice() {
                [] => what.clone(),
                files => format!("{}: {what}", files.join(" with ")),
            }
        }));
        if count == 1 {
            return write!(f, "the configuration is wrong: {}", lines.concat());
        }
        write!(f, "the configuration is wrong in {count} places:")?;
        for line in lines {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// Reads one file. One that does not exist is the default, unless the user named it (`must_exist`).
pub fn load<T: DeserializeOwned + Default>(
    path: &Path,
    must_exist: bool,
) -> Result<T, ConfigError> {
    match read(path, must_exist)? {
        Some(text) => parse(path, &text),
        None => Ok(T::default()),
    }
}

/// A file's text as a value; any file that people write may come this way.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    let read = mistakes::read::<T>(text);
    match read.value {
        Some(value) if read.mistakes.is_empty() => Ok(value),
        _ => Err(ConfigError::Wrong(Wrong {
            found: read
                .mistakes
                .into_iter()
                .map(|mistake| (path.to_owned(), mistake))
                .collect(),
            check: None,
            files: vec![path.to_owned()],
        })),
    }
}

/// Reads a daemon's file and its drop-ins, and checks what they say together. `named` is the file that
/// the user asked for.
pub fn load_daemon<T, E>(
    named: Option<&Path>,
    default_path: &str,
    check: impl FnOnce(&T) -> Result<(), E>,
) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Default,
    E: std::error::Error + 'static,
{
    let path = named.unwrap_or(Path::new(default_path));
    let mut texts = Vec::new();
    texts.extend(read(path, named.is_some())?.map(|text| (path.to_owned(), text)));
    for drop_in in drop_ins(path)? {
        texts.extend(read(&drop_in, true)?.map(|text| (drop_in, text)));
    }
    let files = texts.iter().map(|(path, _)| path.clone()).collect();
    let mut found = Vec::new();
    let mut merged = toml::Table::new();
    for (path, text) in &texts {
        // Every key has a default, so that each file must read by itself.
        let read = mistakes::read::<T>(text);
        merge(&mut merged, read.table);
        found.extend(read.mistakes.into_iter().map(|m| (path.clone(), m)));
    }
    let config = toml::Value::Table(merged)
        .try_into::<T>()
        .map_err(|error| error.message().to_owned());
    let checked = config.and_then(|config| match check(&config) {
        Ok(()) => Ok(config),
        Err(error) => Err(crate::telemetry::Chain(&error).to_string()),
    });
    match checked {
        Ok(config) if found.is_empty() => Ok(config),
        checked => Err(ConfigError::Wrong(Wrong {
            found,
            check: checked.err(),
            files,
        })),
    }
}

/// The folder of a file's drop-ins: `scheduler.d` for `scheduler.toml`.
pub fn drop_in_folder(path: &Path) -> PathBuf {
    path.with_extension("d")
}

/// In the order in which they are read. Other files (a backup, a README) are not ours to read.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = drop_in_folder(path);
    let failed = |source| ConfigError::Read {
        path: folder.clone(),
        source,
    };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
        if path.extension() == Some(OsStr::new("toml")) && !path.file_name().is_some_and(hidden) {
            found.push(path);
        }
    }
    if found.len() > MAX_DROP_INS {
        let count = found.len();
        return Err(ConfigError::TooMany { folder, count });
    }
    found.sort();
    Ok(found)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(value)) => merge(below, value),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

fn read(path: &Path, must_exist: bool) -> Result<Option<String>, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(None),
        Err(e) => return Err(read(e)),
    };
    if metadata.len() > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    std::fs::read_to_string(path).map(Some).map_err(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        capacity: shared::units::Bytes,
        names: Vec<String>,
        lifecycle: Lifecycle,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Lifecycle {
        lease_seconds: u64,
        drain_seconds: u64,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("lifecycle.drain_seconds must be below 100")]
    struct Unfit;

    fn check(example: &Example) -> Result<(), Unfit> {
        if example.lifecycle.drain_seconds < 100 {
            Ok(())
        } else {
            Err(Unfit)
        }
    }

    fn write(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), text).expect("write");
        file
    }

    /// `x.toml` and the drop-ins beside it.
    fn layered(text: &str, drop_ins: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x.toml");
        std::fs::write(&path, text).expect("write");
        std::fs::create_dir(folder.path().join("x.d")).expect("folder");
        for (name, text) in drop_ins {
            std::fs::write(folder.path().join("x.d").join(name), text).expect("write");
        }
        (folder, path)
    }

    fn problem(text: &str) -> String {
        let file = write(text);
        load::<Example>(file.path(), true)
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn a_missing_file_is_the_default_unless_it_was_named() {
        let path = Path::new("/nonexistent/x.toml");
        assert_eq!(
            load::<Example>(path, false).expect("default"),
            Example::default()
        );
        assert!(matches!(
            load::<Example>(path, true),
            Err(ConfigError::Read { .. })
        ));
    }

    #[test]
    fn an_unknown_key_names_its_line_and_what_was_meant() {
        let text = problem("capacity = 1\ncapacty = 2\n");
        assert!(text.contains("line 2"), "{text}");
        assert!(text.contains("`capacty`"), "{text}");
        assert!(text.contains("did you mean `capacity`?"), "{text}");
        let text = problem("[lifecycle]\nlease = 15\n");
        assert!(
            text.contains(
                "line 2: there is no key `lease` in [lifecycle]: did you mean `lease_seconds`?"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_key_in_the_wrong_table_is_told_where_it_belongs() {
        let text = problem("lease_seconds = 15\n");
        assert!(text.contains("it belongs below [lifecycle]"), "{text}");
        let text = problem("[lifecycle]\ncapacity = 15\n");
        assert!(
            text.contains("it belongs above the first [table]"),
            "{text}"
        );
    }

    #[test]
    fn a_wrong_unit_says_what_is_accepted() {
        let text = problem("capacity = \"5 GBs\"\n");
        assert!(text.contains("line 1: capacity: "), "{text}");
        assert!(text.contains("512MiB"), "{text}");
        let text = problem("[lifecycle]\nlease_seconds = \"2m\"\n");
        assert!(
            text.contains("line 2: lifecycle.lease_seconds: found the text \"2m\", expected a whole number of seconds, such as lease_seconds = 120"),
            "{text}"
        );
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let text =
            problem("capcity = 1\nnames = \"a\"\n[lifecycle]\nlease_seconds = -1\ncolour = 3\n");
        assert!(text.contains("wrong in 4 places"), "{text}");
        for line in ["line 1", "line 2", "line 4", "line 5"] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn broken_syntax_names_its_line() {
        let text = problem("capacity = 1\nnames = [\n");
        assert!(text.contains("line 2") || text.contains("line 3"), "{text}");
    }

    #[test]
    fn drop_ins_are_merged_in_the_order_of_their_names() {
        let (_folder, path) = layered(
            "names = [\"a\"]\n[lifecycle]\nlease_seconds = 1\ndrain_seconds = 2\n",
            &[
                ("20-b.toml", "[lifecycle]\nlease_seconds = 20\n"),
                (
                    "10-a.toml",
                    "names = [\"b\", \"c\"]\n[lifecycle]\nlease_seconds = 10\n",
                ),
                ("README", "this is not TOML"),
                ("30-c.toml.bak", "neither = is this"),
                (".40-d.toml", "nor = this"),
            ],
        );
        let config: Example = load_daemon(Some(&path), "", check).expect("valid");
        assert_eq!(config.names, ["b", "c"]);
        assert_eq!(config.lifecycle.lease_seconds, 20);
        assert_eq!(config.lifecycle.drain_seconds, 2);
    }

    #[test]
    fn what_is_wrong_in_a_drop_in_names_that_file() {
        let (_folder, path) = layered(
            "capacty = 1\n",
            &[
                ("10-a.toml", "\n[lifecycle]\nlease = 10\n"),
                ("20-b.toml", "[lifecycle]\ndrain_seconds = 100\n"),
            ],
        );
        let text = load_daemon(Some(&path), "", check)
            .expect_err("refused")
            .to_string();
        assert!(text.contains("wrong in 3 places"), "{text}");
        assert!(text.contains("x.toml line 1: "), "{text}");
        assert!(text.contains("x.d/10-a.toml line 3: "), "{text}");
        assert!(text.contains("must be below 100"), "{text}");
    }

    #[test]
    fn drop_ins_work_without_the_file_and_a_broken_folder_is_refused() {
        let (folder, path) = layered("", &[("a.toml", "capacity = 7")]);
        std::fs::remove_file(&path).expect("removed");
        let default = path.display().to_string();
        let config: Example = load_daemon(None, &default, check).expect("valid");
        assert_eq!(config.capacity.get(), 7);
        std::fs::remove_dir_all(folder.path().join("x.d")).expect("removed");
        std::fs::write(folder.path().join("x.d"), "").expect("write");
        assert!(load_daemon(None, &default, check).is_err());
    }
}
