//! Who may call what: one table with every RPC and every HTTP route by role. Nobody may call a route
//! that is not in the table. `auth` identifies the caller.

use std::collections::BTreeSet;

use http::{Method, Uri};
use kage_core::access::Role;

const READERS: &[Role] = &[Role::Admin, Role::Submit, Role::View];
const SUBMITTERS: &[Role] = &[Role::Admin, Role::Submit];
const ADMINS: &[Role] = &[Role::Admin];
const AGENTS: &[Role] = &[Role::Agent];
/// Everybody with a token or certificate, whatever the role.
const KNOWN: &[Role] = &[Role::Admin, Role::Submit, Role::View, Role::Agent];
const ALL: &[Role] = &[Role::Admin, Role::Submit, Role::View, Role::Agent, Role::Stranger];

const BLOBS_READ: &str = "GET /v1/blobs";
const BLOBS_WRITE: &str = "PUT /v1/blobs";
const GIT_FETCH: &str = "git fetch";
const GIT_PUSH: &str = "git push";
const METRICS: &str = "GET /metrics";
const HEALTHZ: &str = "GET /healthz";
const READYZ: &str = "GET /readyz";

/// A route and the roles that may call it. The owner may call every one.
pub type Row = (&'static str, &'static [Role]);

/// All routes, each once.
pub const TABLE: &[Row] = &[
    ("/kage.v1.TaskService/CreateTask", SUBMITTERS),
    ("/kage.v1.TaskService/CancelTask", SUBMITTERS),
    ("/kage.v1.TaskService/RemoveTask", SUBMITTERS),
    ("/kage.v1.TaskService/GetTask", READERS),
    ("/kage.v1.TaskService/ListTasks", READERS),
    ("/kage.v1.TaskService/WatchTask", READERS),
    ("/kage.v1.TaskService/WatchTasks", READERS),
    ("/kage.v1.TaskService/GetReport", READERS),
    ("/kage.v1.TaskService/GetDiff", READERS),
    ("/kage.v1.TaskService/SelectResult", SUBMITTERS),
    ("/kage.v1.TaskService/SendMessage", SUBMITTERS),
    ("/kage.v1.TaskService/ForkSession", SUBMITTERS),
    ("/kage.v1.TaskService/VerifyResult", SUBMITTERS),
    ("/kage.v1.CheckpointService/ListCheckpoints", READERS),
    ("/kage.v1.CheckpointService/GetCheckpoint", READERS),
    ("/kage.v1.CheckpointService/RestoreSession", SUBMITTERS),
    ("/kage.v1.CheckpointService/CreateCheckpoint", SUBMITTERS),
    ("/kage.v1.ContextService/PutContext", SUBMITTERS),
    ("/kage.v1.ContextService/GetContext", READERS),
    ("/kage.v1.ContextService/GetContextStats", READERS),
    ("/kage.v1.CostService/GetCosts", READERS),
    ("/kage.v1.CostService/ListCalls", READERS),
    ("/kage.v1.FleetService/ListAgents", READERS),
    ("/kage.v1.FleetService/DrainAgent", ADMINS),
    ("/kage.v1.FleetService/CordonAgent", ADMINS),
    ("/kage.v1.FleetService/UncordonAgent", ADMINS),
    ("/kage.v1.FleetService/CreateJoinToken", ADMINS),
    ("/kage.v1.FleetService/RevokeAgent", ADMINS),
    ("/kage.v1.AccessService/CreateToken", ADMINS),
    ("/kage.v1.AccessService/ListTokens", ADMINS),
    ("/kage.v1.AccessService/RevokeToken", ADMINS),
    ("/kage.v1.AgentService/Connect", AGENTS),
    ("/kage.v1.EventService/Append", AGENTS),
    ("/kage.v1.ModelGateService/Reserve", AGENTS),
    ("/kage.v1.ModelGateService/Started", AGENTS),
    ("/kage.v1.ModelGateService/Commit", AGENTS),
    ("/kage.v1.ModelGateService/Release", AGENTS),
    ("/kage.v1.ModelGateService/MayStart", AGENTS),
    ("/kage.v1.EnrollmentService/Enroll", ALL),
    ("/kage.v1.EnrollmentService/Renew", AGENTS),
    ("/kage.v1.ProjectService/ListProjects", READERS),
    ("/kage.v1.ProjectService/ListRepositories", READERS),
    ("/kage.v1.ProjectService/DeleteRepository", ADMINS),
    ("/kage.v1.ServerService/GetServerInfo", KNOWN),
    ("/grpc.health.v1.Health/Check", ALL),
    ("/grpc.health.v1.Health/List", KNOWN),
    ("/grpc.health.v1.Health/Watch", KNOWN),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", KNOWN),
    (BLOBS_READ, KNOWN),
    (BLOBS_WRITE, &[Role::Admin, Role::Submit, Role::Agent]),
    (GIT_FETCH, KNOWN),
    (GIT_PUSH, SUBMITTERS),
    (METRICS, READERS),
    (HEALTHZ, ALL),
    (READYZ, ALL),
];

/// The names of Kage's gRPC services.
pub(crate) fn services() -> impl Iterator<Item = &'static str> {
    let of_route = |(route, _): &Row| route.strip_prefix("/kage.").and(route[1..].split('/').next());
    let names: BTreeSet<_> = TABLE.iter().filter_map(of_route).collect();
    names.into_iter()
}

/// Why a role may not call a route, for people: what it does in words, and who may.
pub(crate) fn refusal(role: Role, route: &str) -> String {
    let what = match route {
        BLOBS_READ => "read blobs".to_owned(),
        BLOBS_WRITE => "write blobs".to_owned(),
        METRICS => "read metrics".to_owned(),
        _ => in_words(route.rsplit('/').next().unwrap_or(route)),
    };
    let row = TABLE.iter().find(|(name, _)| *name == route);
    let roles: Vec<_> = row
        .into_iter()
        .flat_map(|(_, roles)| roles.iter())
        .map(ToString::to_string)
        .collect();
    format!("the role {role} may not {what}; who may: {}", roles.join(", "))
}

/// `drain agent` for `DrainAgent`.
fn in_words(method: &str) -> String {
    let mut words = String::new();
    for character in method.chars() {
        if character.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(character.to_ascii_lowercase());
    }
    words
}

/// The table's answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Answer {
    Allowed,
    /// The role may not call the method.
    Denied(&'static str),
    /// There is no row for it.
    Unknown,
}

pub(crate) fn may(role: Role, method: &Method, uri: &Uri) -> Answer {
    let Some((route, roles)) = row(method, uri) else {
        return Answer::Unknown;
    };
    if role == Role::Owner || roles.contains(&role) {
        Answer::Allowed
    } else {
        Answer::Denied(route)
    }
}

/// The row of a request. If a path has several spellings, only the plain one gets the row with
/// fewer rights.
fn row(method: &Method, uri: &Uri) -> Option<&'static Row> {
    let path = uri.path();
    let name = if path.starts_with("/v1/blobs/") {
        match *method {
            Method::GET | Method::HEAD => BLOBS_READ,
            _ => BLOBS_WRITE,
        }
    } else if path.starts_with("/git/") {
        let fetches = match path.rsplit_once('/') {
            Some((_, "refs")) => uri.query() == Some("service=git-upload-pack"),
            Some((_, service)) => service == "git-upload-pack",
            None => false,
        };
        if fetches { GIT_FETCH } else { GIT_PUSH }
    } else {
        match path {
            "/metrics" => METRICS,
            "/healthz" => HEALTHZ,
            "/readyz" => READYZ,
            _ => path,
        }
    };
    TABLE.iter().find(|(route, _)| *route == name)
}

#[cfg(test)]
mod tests {
    use kage_proto::FILE_DESCRIPTOR_SET;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_has_one_row_and_every_row_of_ours_is_an_rpc() {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut rpcs = BTreeSet::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    rpcs.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        let rows: Vec<_> = TABLE.iter().map(|(route, _)| (*route).to_owned()).collect();
        assert_eq!(
            rows.iter().collect::<BTreeSet<_>>().len(),
            rows.len(),
            "a route stands twice"
        );
        let ours: BTreeSet<_> = rows.into_iter().filter(|route| route.starts_with("/kage.")).collect();
        assert_eq!(ours, rpcs);
    }

    #[test]
    fn a_refusal_is_in_words_and_names_no_path() {
        assert_eq!(
            refusal(Role::Submit, "/kage.v1.FleetService/DrainAgent"),
            "the role submit may not drain agent; who may: admin"
        );
        for (route, _) in TABLE {
            let said = refusal(Role::View, route);
            assert!(!said.contains(['/', '.']), "{said}");
        }
    }

    #[test]
    fn a_role_has_what_the_lesser_one_has() {
        for (route, roles) in TABLE {
            if roles.contains(&Role::View) {
                assert!(roles.contains(&Role::Submit), "{route}");
            }
            if roles.contains(&Role::Submit) {
                assert!(roles.contains(&Role::Admin), "{route}");
            }
            assert!(!roles.contains(&Role::Owner), "{route}: the owner is not in rows");
        }
    }

    #[test]
    fn strangers_may_enrol_and_ask_for_health_only() {
        let open = TABLE.iter().filter(|(_, roles)| roles.contains(&Role::Stranger));
        let open: Vec<_> = open.map(|(route, _)| *route).collect();
        let expected = [
            "/kage.v1.EnrollmentService/Enroll",
            "/grpc.health.v1.Health/Check",
            HEALTHZ,
            READYZ,
        ];
        assert_eq!(open, expected);
    }

    #[test]
    fn http_routes_are_told_apart_and_doubt_is_a_push() {
        let cases = [
            (Method::GET, "/v1/blobs/p/d", BLOBS_READ),
            (Method::HEAD, "/v1/blobs/p/d", BLOBS_READ),
            (Method::PUT, "/v1/blobs/p/d", BLOBS_WRITE),
            (Method::DELETE, "/v1/blobs/p/d", BLOBS_WRITE),
            (Method::GET, "/git/p/r/info/refs?service=git-upload-pack", GIT_FETCH),
            (Method::GET, "/git/p/r/info/refs?service=git-receive-pack", GIT_PUSH),
            (
                Method::GET,
                "/git/p/r/info/refs?service=git-upload-pack&service=git-receive-pack",
                GIT_PUSH,
            ),
            (Method::GET, "/git/p/r/info/refs?service=git%2Dreceive-pack", GIT_PUSH),
            (Method::GET, "/git/p/r/info/refs", GIT_PUSH),
            (Method::POST, "/git/p/r/git-upload-pack", GIT_FETCH),
            (Method::POST, "/git/p/r/git-receive-pack", GIT_PUSH),
            (Method::POST, "/git/p/r/git%2Dreceive-pack", GIT_PUSH),
            (Method::GET, "/metrics", METRICS),
            (Method::HEAD, "/healthz", HEALTHZ),
            (Method::GET, "/readyz", READYZ),
        ];
        for (method, uri, expected) in cases {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(row(&method, &uri).map(|(route, _)| *route), Some(expected), "{uri}");
        }
        let unknown: Uri = "/kage.v1.TaskService/Createtask".parse().unwrap();
        for role in Role::ALL {
            assert_eq!(may(role, &Method::POST, &unknown), Answer::Unknown, "{role}");
        }
    }
}
