//! Work that blocks, away from the async threads.

/// Runs `work` on a thread that may block. A panic in it goes on in the caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // A runtime that shuts down polls nobody, so this waits for its own end.
            Err(_) => std::future::pending().await,
        },
    }
}
