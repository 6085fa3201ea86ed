//! CostService: the ledger of calls, and what it adds up to.

use std::sync::Arc;

use kage_proto::convert::time::time;
use kage_proto::convert::{cost, parse_optional};
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::cost_service_server::CostService;
use tonic::{Request, Response, Status};

use super::page::{OfKey, page};
use super::principal;
use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::refusals::read_error;
use crate::store::CallFilter;

const SIZE: u32 = 100;
const MAX_SIZE: u32 = 500;

#[derive(Debug)]
pub(crate) struct Costs(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl CostService for Costs {
    async fn get_costs(&self, message: Request<v1::GetCostsRequest>) -> Result<Response<v1::GetCostsResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let filter = filter(&caller, message.filter)?;
        let by = cost::costs_by("by", message.by).map_err(ApiError::from)?;
        let table = self.0.store.costs(&filter, by).await.map_err(read_error)?;
        let groups = table.groups.into_iter().collect();
        let place = |(key, _): &(String, _)| OfKey(key.clone());
        let (groups, next_page_token) = page(groups, place, message.page_size, &message.page_token)?;
        Ok(Response::new(v1::GetCostsResponse {
            groups: groups.into_iter().map(|(key, of)| cost::group(key, &of)).collect(),
            total: Some(cost::group(String::new(), &table.all)),
            next_page_token,
        }))
    }

    async fn list_calls(
        &self,
        message: Request<v1::ListCallsRequest>,
    ) -> Result<Response<v1::ListCallsResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let filter = filter(&caller, message.filter)?;
        let after = match message.page_token.as_str() {
            "" => 0,
            token => {
                let invalid = |_| ApiError::invalid("page_token", "is not a page token of this list");
                token.parse::<u64>().map_err(invalid)?
            }
        };
        let size = match message.page_size {
            0 => SIZE,
            size => size.min(MAX_SIZE),
        };
        let mut rows = self.0.store.calls(&filter, after, size + 1).await.map_err(read_error)?;
        let more = rows.len() > size as usize;
        rows.truncate(size as usize);
        let last = rows.last().filter(|_| more).map(|(n, _)| n.to_string());
        Ok(Response::new(v1::ListCallsResponse {
            calls: rows.into_iter().map(|(_, row)| row.into()).collect(),
            next_page_token: last.unwrap_or_default(),
        }))
    }
}

/// The rows that a caller asks for, of those that it may see.
fn filter(caller: &Principal, asked: Option<v1::CallFilter>) -> Result<CallFilter, ApiError> {
    let asked = asked.unwrap_or_default();
    let project = match (asked.project.as_str(), caller.bound_to()) {
        ("", None) => None,
        (name, _) => Some(caller.project("filter.project", name)?),
    };
    Ok(CallFilter {
        project,
        task: parse_optional("filter.task_id", &asked.task_id)?,
        since: asked.since.map(time),
        until: asked.until.map(time),
    })
}
