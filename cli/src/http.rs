//! The HTTP client for the blob plane.

/// A client that speaks to the coordinator.
///
/// # Errors
/// When the TLS library cannot be set up.
pub fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().build()
}
