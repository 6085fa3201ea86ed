//! EnrollmentService: an agent presents its join token and a public key, and gets a certificate;
//! later it presents the certificate, and gets the next one.

use std::sync::Arc;

use kage_core::access::JoinRefusal;
use kage_core::id::{AgentId, Digest, ProjectId, TokenId};
use kage_core::time::Timestamp;
use kage_proto::convert::agent::can;
use kage_proto::convert::parse;
use kage_proto::convert::time::stamp;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::enrollment_service_server::EnrollmentService;
use tonic::{Request, Response, Status};

use super::{no_tls, principal};
use crate::coordinator::Coordinator;
use crate::data::authority::{Authority, CheckedRequest, IssueError};
use crate::door::auth::{Principal, same};
use crate::door::lobby::Guest;
use crate::refusals::{internal, read_error, store_error};
use crate::store::{EnrolAgent, Enrolled};

#[derive(Debug)]
pub(crate) struct Enrollment(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl EnrollmentService for Enrollment {
    async fn enroll(&self, message: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollResponse>, Status> {
        let guest = message.extensions().get::<Arc<Guest>>().cloned();
        let message = message.into_inner();
        let authority = self.0.authority.as_ref().ok_or_else(no_tls)?;
        let token: TokenId = parse("token_id", &message.token_id).map_err(ApiError::from)?;
        let project = match message.project.as_str() {
            "" => None,
            text => Some(parse::<ProjectId>("project", text).map_err(ApiError::from)?),
        };
        let secret = Digest::of(message.secret.as_bytes());
        // Before anything that costs more: whoever does not know the secret gets no further.
        let stored = self.0.store.join_token(token).await.map_err(read_error)?;
        if !stored.is_some_and(|stored| same(&stored.secret, &secret)) {
            if let Some(guest) = guest {
                self.0.restraint.wrong_token(guest.address()).await?;
            }
            tracing::warn!(%token, "an agent showed a wrong join token");
            return Err(ApiError::JoinRefused(JoinRefusal::Unknown).into());
        }
        // Before the token is used up: a request that cannot be granted costs nothing.
        let checked = authority.check(&message.certificate_request).map_err(issue_error)?;
        let now = self.0.now();
        let command = EnrolAgent {
            token,
            secret,
            project,
            key: checked.key.clone(),
            agent: AgentId::from_random(self.0.random()),
            now,
        };
        let enrolment = match self.0.apply(command).await.map_err(store_error)? {
            Enrolled::Joined(enrolment) => enrolment,
            Enrolled::Refused(refusal) => {
                tracing::warn!(%token, %refusal, "an agent was refused");
                return Err(ApiError::JoinRefused(refusal).into());
            }
        };
        let (certificate, until) = self.issue(authority, &checked, enrolment.agent, now)?;
        self.0.settled().await;
        tracing::info!(agent = %enrolment.agent, %token, "agent joined");
        Ok(Response::new(v1::EnrollResponse {
            agent_id: enrolment.agent.to_string(),
            certificate,
            ca_certificate: authority.ca_pem().to_owned(),
            project: enrolment.project.to_string(),
            labels: enrolment.labels.into_iter().collect(),
            expires_at: Some(stamp(until)),
            can: can(enrolment.can),
        }))
    }

    async fn renew(&self, message: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        // The door has checked the certificate, and that its agent was not revoked.
        let Principal::Agent { id: agent, .. } = principal(&message) else {
            return Err(ApiError::FailedPrecondition {
                message: "only an agent that joined has a certificate to renew".to_owned(),
            }
            .into());
        };
        let authority = self.0.authority.as_ref().ok_or_else(no_tls)?;
        let checked = authority
            .check(&message.into_inner().certificate_request)
            .map_err(issue_error)?;
        let (certificate, until) = self.issue(authority, &checked, agent, self.0.now())?;
        tracing::info!(%agent, "the certificate of an agent was renewed");
        Ok(Response::new(v1::RenewResponse {
            certificate,
            expires_at: Some(stamp(until)),
        }))
    }
}

impl Enrollment {
    /// PEM of a certificate, and its end.
    fn issue(
        &self,
        authority: &Authority,
        checked: &CheckedRequest,
        agent: AgentId,
        now: Timestamp,
    ) -> Result<(String, Timestamp), ApiError> {
        let until = now + self.0.timings.agent_certificate;
        let certificate = authority.issue(checked, agent, now, until).map_err(issue_error)?;
        Ok((certificate, until))
    }
}

fn issue_error(error: IssueError) -> ApiError {
    match &error {
        IssueError::Request(_) => ApiError::invalid("certificate_request", &error),
        IssueError::Sign(_) => internal("the certificate could not be issued", &error),
    }
}
