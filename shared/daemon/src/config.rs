//! Configuration files: TOML, unknown keys refused, every key with a default.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Configuration files are small; a larger one is not one.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

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
    /// The problem names line, column and key.
    #[error("configuration file {} is wrong: {problem}", path.display())]
    Parse { path: PathBuf, problem: String },
}

/// Reads a configuration. A file that does not exist is the default configuration, unless the user
/// named it (`must_exist`).
pub fn load<T: DeserializeOwned + Default>(
    path: &Path,
    must_exist: bool,
) -> Result<T, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(T::default()),
        Err(e) => return Err(read(e)),
    };
    if metadata.len() > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        problem: error.to_string().trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Example {
        capacity: shared::units::Bytes,
    }

    fn write(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), text).expect("write");
        file
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
    fn an_unknown_key_or_a_wrong_unit_names_its_line() {
        let unknown = write("capacity = 1\ncapacty = 2\n");
        let text = load::<Example>(unknown.path(), true)
            .expect_err("refused")
            .to_string();
        assert!(
            text.contains("line 2") && text.contains("capacty"),
            "{text}"
        );
        let unit = write("capacity = \"5 XB\"\n");
        let text = load::<Example>(unit.path(), true)
            .expect_err("refused")
            .to_string();
        assert!(text.contains("line 1") && text.contains("512MiB"), "{text}");
    }
}
