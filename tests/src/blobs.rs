//! The blob plane as clients see it.

use anyhow::ensure;
use bytes::Bytes;
use kage_core::id::{Digest, ProjectId};
use kage_proto::blob::blob_path;

use crate::cluster::Cluster;

/// A client for plain HTTP/1.1, with the workspace's only crypto provider.
#[must_use]
pub fn http() -> reqwest::Client {
    client(|builder| builder)
}

/// A client that speaks HTTP/2 from the first byte.
#[must_use]
pub fn http2() -> reqwest::Client {
    client(reqwest::ClientBuilder::http2_prior_knowledge)
}

fn client(change: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> reqwest::Client {
    // Other code in this process may have installed it.
    drop(rustls::crypto::ring::default_provider().install_default());
    change(reqwest::Client::builder())
        .build()
        .expect("a client without certificates of its own can be built")
}

/// Stores bytes under their digest in the default project.
pub async fn put(cluster: &Cluster, digest: &Digest, bytes: Bytes) -> anyhow::Result<()> {
    let path = blob_path(&ProjectId::default(), digest);
    let request = http()
        .put(format!("{}{path}", cluster.url()))
        .bearer_auth(cluster.token())
        .body(bytes);
    let response = request.send().await?;
    ensure!(
        response.status().is_success(),
        "the blob is refused: {}",
        response.status()
    );
    Ok(())
}

/// Reads bytes by their digest from the default project, and checks them.
pub async fn get(cluster: &Cluster, digest: &Digest) -> anyhow::Result<Bytes> {
    let path = blob_path(&ProjectId::default(), digest);
    let request = http()
        .get(format!("{}{path}", cluster.url()))
        .bearer_auth(cluster.token());
    let bytes = request.send().await?.error_for_status()?.bytes().await?;
    ensure!(Digest::of(&bytes) == *digest, "other bytes came");
    Ok(bytes)
}
