//! ProjectService: lists projects, and the repositories of a project.

use std::collections::BTreeMap;
use std::sync::Arc;

use kage_core::id::{ProjectId, RepositoryName};
use kage_proto::convert::parse;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::project_service_server::ProjectService;
use tonic::{Request, Response, Status};

use super::page::{OfName, page};
use super::{principal, request};
use crate::coordinator::Coordinator;
use crate::coordinator::deletion::DeletionError;
use crate::refusals::{busy, internal, read_error, store_error};

#[derive(Debug)]
pub(crate) struct Projects(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl ProjectService for Projects {
    async fn list_projects(
        &self,
        message: Request<v1::ListProjectsRequest>,
    ) -> Result<Response<v1::ListProjectsResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let with_tasks = self.0.store.projects().await.map_err(read_error)?;
        let mut projects: BTreeMap<ProjectId, (u64, u64)> = with_tasks
            .into_iter()
            .map(|counted| (counted.project, (counted.tasks, counted.open)))
            .collect();
        for project in self.with_repositories().await? {
            projects.entry(project).or_default();
        }
        projects.retain(|project, _| caller.may_use(project).is_ok());
        let place = |(project, _): &(ProjectId, (u64, u64))| OfName(project.to_string());
        let projects = projects.into_iter().collect();
        let (projects, next_page_token) = page(projects, place, message.page_size, &message.page_token)?;
        let projects = projects.into_iter().map(|(project, (tasks, open_tasks))| v1::Project {
            name: project.into(),
            tasks,
            open_tasks,
        });
        Ok(Response::new(v1::ListProjectsResponse {
            projects: projects.collect(),
            next_page_token,
        }))
    }

    async fn list_repositories(
        &self,
        message: Request<v1::ListRepositoriesRequest>,
    ) -> Result<Response<v1::ListRepositoriesResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let project = caller.project("project", &message.project)?;
        let found = self.0.repositories.named().await;
        let found = found.map_err(|error| internal("the repositories could not be listed", &error))?;
        let names = found.into_iter().filter(|(of, _)| *of == project);
        let names: Vec<String> = names.map(|(_, name)| name.to_string()).collect();
        let place = |name: &String| OfName(name.clone());
        let (names, next_page_token) = page(names, place, message.page_size, &message.page_token)?;
        let repositories = names.into_iter().map(|name| v1::StoredRepository {
            git_path: format!("/git/{project}/{name}"),
            name,
        });
        Ok(Response::new(v1::ListRepositoriesResponse {
            repositories: repositories.collect(),
            next_page_token,
        }))
    }

    async fn delete_repository(
        &self,
        message: Request<v1::DeleteRepositoryRequest>,
    ) -> Result<Response<v1::DeleteRepositoryResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let project = caller.project("project", &message.project)?;
        let name: RepositoryName = parse("name", &message.name).map_err(ApiError::from)?;
        let once = request(&self.0, &caller, &message.request_id, &(&project, &name))?;
        let deleted = self.0.delete_repository(once, &project, &name).await;
        deleted.map_err(|error| match error {
            DeletionError::Busy(reason) => busy(reason),
            error @ DeletionError::BackedUp => ApiError::Unavailable {
                message: error.to_string(),
                retry: None,
            },
            DeletionError::Store(error) => store_error(error),
            DeletionError::Io(error) => internal("the repository could not be deleted", &error),
        })?;
        Ok(Response::new(v1::DeleteRepositoryResponse {}))
    }
}

impl Projects {
    async fn with_repositories(&self) -> Result<Vec<ProjectId>, Status> {
        let found = self.0.repositories.named().await;
        let found = found.map_err(|error| internal("the repositories could not be listed", &error))?;
        Ok(found.into_iter().map(|(project, _)| project).collect())
    }
}
