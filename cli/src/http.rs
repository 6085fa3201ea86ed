//! The HTTP client for the blob plane.

use crate::connect::Access;

/// A client with the caller's credentials for the coordinator. It ignores proxies of the
/// environment, as gRPC does: a proxy would see the token of a coordinator on this machine.
///
/// # Errors
/// When the TLS library cannot be set up.
pub fn client(access: &Access) -> reqwest::Result<reqwest::Client> {
    kage_agent::identity::trust::http_client(&access.credentials)?
        .no_proxy()
        .build()
}
