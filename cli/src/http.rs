//! The HTTP client for the blob plane.

use crate::connect::Access;

/// A client that speaks to the coordinator, and shows it who calls. Directly, as gRPC does:
/// a proxy of the environment would see the token of a coordinator on this machine.
///
/// # Errors
/// When the TLS library cannot be set up.
pub fn client(access: &Access) -> reqwest::Result<reqwest::Client> {
    kage_agent::identity::trust::http_client(&access.credentials)?
        .no_proxy()
        .build()
}
