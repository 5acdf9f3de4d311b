//! The bearer token, from its file.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A token is some 60 bytes; a file much longer is another one.
const MAX_TOKEN_BYTES: u64 = 4096;

#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    /// For the `Authorization` header only.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("read token file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("token file {} holds no token: expected one line starting with shk_", path.display())]
    NoToken { path: PathBuf },
}

/// The token, and a warning when others could read it.
pub(crate) fn read_token(path: &Path) -> Result<(Token, Option<String>), TokenError> {
    let fail = |source| TokenError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.mode();
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES)
        .read_to_string(&mut text)
        .map_err(fail)?;
    let token = text.trim();
    let printable = token.bytes().all(|b| b.is_ascii_graphic());
    if token.is_empty() || !printable {
        return Err(TokenError::NoToken {
            path: path.to_owned(),
        });
    }
    let warning = (mode & 0o077 != 0).then(|| {
        format!(
            "token file {0} can be read by others (mode {1:04o}): chmod 600 {0}",
            path.display(),
            mode & 0o7777
        )
    });
    Ok((Token(token.to_owned()), warning))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn written(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), text).expect("write");
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(file.path(), mode).expect("mode");
        file
    }

    #[test]
    fn a_token_that_others_can_read_is_used_with_a_warning() {
        let file = written("shk_1_2\n", 0o644);
        let (token, warning) = read_token(file.path()).expect("read");
        assert_eq!(token.expose(), "shk_1_2");
        assert!(warning.is_some_and(|text| text.contains("0644")));
        let file = written("shk_1_2\n", 0o600);
        let (token, warning) = read_token(file.path()).expect("read");
        assert_eq!(warning, None);
        assert!(!format!("{token:?}").contains("shk_"));
    }

    #[test]
    fn a_file_without_a_token_is_refused() {
        for text in ["", "\n", "two words", "a\nb"] {
            assert!(read_token(written(text, 0o600).path()).is_err(), "{text:?}");
        }
    }
}
