//! The server of the port: gRPC (also for browsers), blobs, git and metrics, behind one door.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use kage_proto::v1::access_service_server::AccessServiceServer;
use kage_proto::v1::agent_service_server::AgentServiceServer;
use kage_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use kage_proto::v1::context_service_server::ContextServiceServer;
use kage_proto::v1::cost_service_server::CostServiceServer;
use kage_proto::v1::enrollment_service_server::EnrollmentServiceServer;
use kage_proto::v1::event_service_server::EventServiceServer;
use kage_proto::v1::fleet_service_server::FleetServiceServer;
use kage_proto::v1::model_gate_service_server::ModelGateServiceServer;
use kage_proto::v1::project_service_server::ProjectServiceServer;
use kage_proto::v1::server_service_server::ServerServiceServer;
use kage_proto::v1::task_service_server::TaskServiceServer;
use kage_proto::{FILE_DESCRIPTOR_SET, MAX_MESSAGE, MAX_TASK_MESSAGE};
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::Origin;
use crate::coordinator::Coordinator;
use crate::door::access;
use crate::door::auth::{self, Door};
use crate::door::{json, web};
use crate::services::access::Access;
use crate::services::agent::Agents;
use crate::services::checkpoint::Checkpoints;
use crate::services::context::Contexts;
use crate::services::cost::Costs;
use crate::services::enrollment::Enrollment;
use crate::services::event::Events;
use crate::services::fleet::Fleet;
use crate::services::http as routes;
use crate::services::model_gate::ModelGate;
use crate::services::project::Projects;
use crate::services::server::Server;
use crate::services::task::Tasks;

/// The reflection service could not be made of the descriptors in this program.
pub(crate) type ReflectionError = tonic_reflection::server::Error;

/// Every route, behind the door.
pub(crate) async fn router(
    coordinator: &Arc<Coordinator>,
    door: Door,
    web_origins: &[Origin],
) -> Result<Router, ReflectionError> {
    let tasks = TaskServiceServer::new(Tasks(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_TASK_MESSAGE)
        .max_encoding_message_size(MAX_TASK_MESSAGE);
    let contexts = ContextServiceServer::new(Contexts(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let fleet = FleetServiceServer::new(Fleet(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let agents = AgentServiceServer::new(Agents::new(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let events = EventServiceServer::new(Events(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let costs = CostServiceServer::new(Costs(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let gate = ModelGateServiceServer::new(ModelGate(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    // Space for a message is reserved before it arrives: for strangers, only for small ones.
    let enrollment = EnrollmentServiceServer::new(Enrollment(Arc::clone(coordinator)))
        .max_decoding_message_size(auth::MOST_OF_STRANGER)
        .max_encoding_message_size(MAX_MESSAGE);
    let tokens = AccessServiceServer::new(Access(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let checkpoints = CheckpointServiceServer::new(Checkpoints(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_TASK_MESSAGE);
    let projects = ProjectServiceServer::new(Projects(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let server = ServerServiceServer::new(Server(Arc::clone(coordinator)))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let (reporter, health) = tonic_health::server::health_reporter();
    tell(&reporter, ServingStatus::Serving).await;
    let closing = coordinator.closing.clone();
    coordinator.tasks.spawn(async move {
        closing.cancelled().await;
        tell(&reporter, ServingStatus::NotServing).await;
    });
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET);
    // Many tools ask in the version of before.
    let (reflection, older) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let grpc = Routes::new(tasks)
        .add_service(contexts)
        .add_service(fleet)
        .add_service(agents)
        .add_service(events)
        .add_service(gate)
        .add_service(costs)
        .add_service(enrollment)
        .add_service(tokens)
        .add_service(checkpoints)
        .add_service(projects)
        .add_service(server)
        // Strangers may ask, too.
        .add_service(health.max_decoding_message_size(auth::MOST_OF_STRANGER))
        .add_service(reflection)
        .add_service(older);
    let guarded = grpc
        .into_axum_router()
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(coordinator),
            to_the_end,
        ))
        .layer(axum::middleware::from_fn(json::carry))
        .merge(routes::routes(Arc::clone(coordinator)))
        .fallback(nothing_here)
        .layer(axum::middleware::from_fn_with_state(door, auth::guard));
    Ok(web::for_browsers(guarded, web_origins))
}

/// Tells the health of every service, and of the port as a whole, which has no name.
async fn tell(reporter: &HealthReporter, status: ServingStatus) {
    for service in access::services().chain([""]) {
        reporter.set_service_status(service, status).await;
    }
}

/// A path that begins as one of ours and is none.
async fn nothing_here() -> axum::response::Response {
    (http::StatusCode::NOT_FOUND, "there is nothing at this path\n").into_response()
}

/// Runs a started call to its end, even if its caller disconnects: stored changes have consequences
/// that nothing else would carry out.
async fn to_the_end(
    State(coordinator): State<Arc<Coordinator>>,
    request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    match coordinator.tasks.spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => http::StatusCode::SERVICE_UNAVAILABLE.into_response(),
        },
    }
}
