//! What the disk is asked for.

use fusebox_actors::AdminError;

/// What the disk says to `work`, which blocks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, AdminError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| AdminError::Failed(error.to_string()))?;
    done.map_err(|error| unwritten(&error))
}

/// What could not be written has failed with this.
pub(super) fn unwritten(error: &std::io::Error) -> AdminError {
    AdminError::Failed(format!("it cannot be written to disk: {error}"))
}
