//! ServerService: describes this coordinator.

use std::sync::Arc;

use kage_core::task::{MAX_PROMPT_BYTES, MAX_SESSIONS};
use kage_proto::convert::time::{span, stamp};
use kage_proto::v1::server_service_server::ServerService;
use kage_proto::{MAX_INLINE, MAX_MESSAGE, MAX_TASK_MESSAGE, PROTOCOL, PROTOCOL_MIN, v1};
use tonic::{Request, Response, Status};

use crate::coordinator::Coordinator;

#[derive(Debug)]
pub(crate) struct Server(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl ServerService for Server {
    async fn get_server_info(
        &self,
        _: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        Ok(Response::new(v1::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            now: Some(stamp(self.0.now())),
            tls: self.0.authority.is_some(),
            limits: Some(v1::Limits {
                prompt_bytes: MAX_PROMPT_BYTES as u64,
                sessions: u32::try_from(MAX_SESSIONS).unwrap_or(u32::MAX),
                inline_bytes: MAX_INLINE as u64,
                message_bytes: MAX_MESSAGE as u64,
                task_message_bytes: MAX_TASK_MESSAGE as u64,
            }),
            lease_ttl: Some(span(self.0.timings.lease_ttl)),
        }))
    }
}
