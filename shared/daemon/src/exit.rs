//! How a program ends.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

/// Threads that wait for a disk or a name server get this long after everything else has stopped.
const BLOCKING_GRACE: Duration = Duration::from_secs(2);

/// Runs `main` and turns an error into one line per cause on stderr and exit code 1.
pub fn run(main: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    match main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a daemon's life on a runtime of its own. A call that hangs on a thread, in a disk or in a
/// resolver, does not hold up the end.
pub fn block_on<T>(name: &str, life: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name(name)
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(life);
    runtime.shutdown_timeout(BLOCKING_GRACE);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_does_not_hold_up_the_end() {
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let ended = block_on("test", async move {
            tokio::task::spawn_blocking(move || hangs.recv());
            Ok("the end")
        });
        assert_eq!(ended.expect("ended"), "the end");
        drop(release);
    }
}
