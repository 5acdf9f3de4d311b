//! Runs a program of the system for a limited time, with a limited answer.
//!
//! Only programs that root installed are run here: CNI plugins, `nft` and `ip`. Their environment is
//! what they are given and nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Where system programs lie; also the `PATH` of what is run.
pub const SYSTEM_FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// A CNI result or a listing of our own tables is far from it.
const MAX_ANSWER_BYTES: u64 = 4 << 20;
/// Of a program's complaints, in an error.
const TOLD_CHARS: usize = 600;

#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("run {}", path.display())]
    Run {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has not ended within {limit:?} and was killed", path.display())]
    TimedOut { path: PathBuf, limit: Duration },
    #[error("{} printed more than {MAX_ANSWER_BYTES} bytes", path.display())]
    TooMuch { path: PathBuf },
}

/// An executable file of this name in one of the folders.
pub fn find<P: AsRef<Path>>(name: &str, folders: impl IntoIterator<Item = P>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    folders
        .into_iter()
        .map(|folder| folder.as_ref().join(name))
        .find(|path| {
            std::fs::metadata(path)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// Cancelled or late, the program is killed.
pub async fn run(
    path: &Path,
    arguments: &[&str],
    environment: &[(&str, String)],
    input: &[u8],
    limit: Duration,
) -> Result<Answer, ProgramError> {
    let work = talk(path, arguments, environment, input);
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(ProgramError::TooMuch { path: path.into() }),
        Ok(Err(source)) => Err(ProgramError::Run {
            path: path.into(),
            source,
        }),
        Err(_) => Err(ProgramError::TimedOut {
            path: path.into(),
            limit,
        }),
    }
}

async fn talk(
    path: &Path,
    arguments: &[&str],
    environment: &[(&str, String)],
    input: &[u8],
) -> io::Result<Option<Answer>> {
    let mut child = Command::new(path)
        .args(arguments)
        .env_clear()
        .env("PATH", SYSTEM_FOLDERS.join(":"))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its input says by its end what that means.
            let _ = stdin.write_all(input).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(write, bounded(stdout), bounded(stderr));
    let (Some(stdout), Some(stderr)) = (stdout?, stderr?) else {
        return Ok(None);
    };
    let success = child.wait().await?.success();
    Ok(Some(Answer {
        success,
        stdout,
        stderr,
    }))
}

/// `None` where there is too much.
async fn bounded(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream
            .take(MAX_ANSWER_BYTES + 1)
            .read_to_end(&mut bytes)
            .await?;
    }
    Ok((bytes.len() as u64 <= MAX_ANSWER_BYTES).then_some(bytes))
}

/// What a program said, on one line.
pub fn told(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(TOLD_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, input: &[u8], limit: Duration) -> Result<Answer, ProgramError> {
        let shell = find("sh", SYSTEM_FOLDERS).expect("a shell");
        let environment = [("WORD", "hello".to_owned())];
        run(&shell, &["-c", script], &environment, input, limit).await
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_environment_and_nothing_else() {
        let limit = Duration::from_secs(20);
        let answer = sh("cat; echo $WORD $HOME; echo no >&2; exit 3", b"in ", limit).await;
        let answer = answer.expect("ran");
        assert!(!answer.success);
        assert_eq!(answer.stdout, b"in hello\n");
        assert_eq!(told(&answer.stderr), "no");
    }

    #[tokio::test]
    async fn one_that_hangs_or_talks_without_end_is_killed() {
        let hung = sh("sleep 1000", b"", Duration::from_millis(100)).await;
        assert!(matches!(hung, Err(ProgramError::TimedOut { .. })));
        let endless = sh("yes", b"", Duration::from_secs(60)).await;
        assert!(matches!(endless, Err(ProgramError::TooMuch { .. })));
    }

    #[tokio::test]
    async fn one_that_does_not_read_its_input_is_no_error() {
        let input = vec![b'x'; 1 << 20];
        let answer = sh("exit 0", &input, Duration::from_secs(20)).await;
        assert!(answer.expect("ran").success);
    }
}
