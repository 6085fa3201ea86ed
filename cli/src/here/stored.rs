//! The name of a repository on the coordinator. The first clone that is sent gives it, with the
//! name of its folder; every later clone finds it by the lineage that both have. When two first
//! clones were sent at the same time there are two, and the first by name is taken from then on.

use kage_core::id::RepositoryName;
use kage_core::task::Lineage;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::connect::Access;

/// The name of a repository, and whether the coordinator has objects of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredName {
    /// The coordinator has a repository of this lineage.
    Known(RepositoryName),
    /// It has none so far; a push makes it.
    New(RepositoryName),
}

impl StoredName {
    /// The name, known or not.
    #[must_use]
    pub fn into_name(self) -> RepositoryName {
        match self {
            Self::Known(name) | Self::New(name) => name,
        }
    }
}

/// Looks the lineage up in the project of the caller. `folder` makes the name of a new one.
pub(super) async fn find(access: &Access, lineage: &Lineage, folder: &str) -> Result<StoredName, ApiError> {
    let mut page_token = String::new();
    loop {
        let request = v1::ListRepositoriesRequest {
            project: access.project.to_string(),
            page_size: 100,
            page_token,
        };
        let page = access.client.projects().list_repositories(request).await;
        let page = page.map_err(ApiError::from)?.into_inner();
        // In the order of their names.
        let names = page
            .repositories
            .into_iter()
            .filter_map(|stored| stored.name.parse().ok());
        if let Some(name) = names.into_iter().find(|name| lineage.is_of(name)) {
            return Ok(StoredName::Known(name));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(StoredName::New(lineage.name(folder)));
        }
    }
}
