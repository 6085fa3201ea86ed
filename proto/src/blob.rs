//! Names on the HTTP side of the coordinator's port: paths of blobs and repositories,
//! and the headers that go with them. No requests are made here.

use kage_core::id::{Digest, ProjectId, RepositoryName};

/// The header in which an agent names itself when it fetches a blob, for the counts of
/// GetContextStats.
pub const AGENT_HEADER: &str = "x-kage-agent";

/// The header of a GET with which an agent asks for a base context that the coordinator lost: it waits a while
/// for somebody to bring it.
pub const LOST_HEADER: &str = "x-kage-lost";

/// The header of its answer: who brought the context, for people.
pub const BROUGHT_BY_HEADER: &str = "x-kage-brought-by";

/// The path of a blob, for HEAD, GET and PUT.
#[must_use]
pub fn blob_path(project: &ProjectId, digest: &Digest) -> String {
    format!("/v1/blobs/{project}/{digest}")
}

/// The path of a repository, for git.
#[must_use]
pub fn repository_path(project: &ProjectId, repository: &RepositoryName) -> String {
    format!("/git/{project}/{repository}")
}

/// The value of the `authorization` header.
#[must_use]
pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}
