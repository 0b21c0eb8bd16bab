//! Names and folders that are this run's own.

/// The beginning of this run's namespaces.
pub(crate) fn prefix(tag: &str) -> String {
    format!("fbb{}{tag}", std::process::id())
}

/// A folder that is gone with the run.
///
/// # Errors
/// It cannot be made.
pub(crate) fn folder() -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("firebreak-bench-").tempdir()
}
