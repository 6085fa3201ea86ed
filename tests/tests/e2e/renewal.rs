//! An agent that joined renews its certificate by itself, while it works. Both sides run in this
//! process, because the agent's clock is put forward.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kage_agent::identity::enrolment;
use kage_agent::identity::renewal::Validity;
use kage_agent::{Limits, Ports, Registry};
use kage_coordinator::{Config, RunError};
use kage_core::time::Timestamp;
use kage_proto::client::{Client, Credentials, PemFile};
use kage_proto::v1;
use kage_tests::wait::wait_for;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long certificates are good here.
const LIFE: Duration = Duration::from_secs(60 * 60);

async fn coordinator(dir: &Path, running: &mut JoinSet<Result<(), RunError>>, end: &CancellationToken) -> String {
    let mut config = Config::new(dir);
    config.tls = true;
    config.timings.agent_certificate = LIFE;
    config.timings.drain = Duration::from_millis(200);
    let (ready, address) = oneshot::channel();
    let ports = kage_coordinator::Ports {
        on_ready: Some(ready),
        ..kage_coordinator::Ports::system()
    };
    running.spawn(kage_coordinator::run(config, ports, end.clone()));
    format!("127.0.0.1:{}", address.await.unwrap().port())
}

fn certificate(state: &Path) -> Vec<u8> {
    let stored = enrolment::stored(state).unwrap().unwrap();
    stored.identity.unwrap().certificate.content().to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_renews_its_certificate_long_before_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (data, state) = (dir.path().join("coordinator"), dir.path().join("agent"));
    let end = CancellationToken::new();
    let mut coordinators = JoinSet::new();
    let address = coordinator(&data, &mut coordinators, &end).await;
    let url = format!("https://{address}");
    let token = std::fs::read_to_string(data.join("token")).unwrap();
    let owner = Credentials::bearer(&token).trusting(PemFile::read(data.join("tls/ca.pem")).unwrap());
    let owner = Client::connect_as(&url, &owner).await.unwrap();

    let request = v1::CreateJoinTokenRequest {
        request_id: "join".to_owned(),
        ..v1::CreateJoinTokenRequest::default()
    };
    let created = owner.fleet().create_join_token(request).await.unwrap().into_inner();
    let token = created.join_token.parse().unwrap();
    let mut ports = Ports::system(Registry::new());
    let joined = enrolment::join(&state, &address, &token, &ports.random).await.unwrap();
    let first = certificate(&state);
    let validity = Validity::of(&first).unwrap();
    assert_eq!(validity.until.as_millis() / 1000, joined.expires_at.as_millis() / 1000);

    let (system, ahead) = (Arc::clone(&ports.clock), Arc::new(AtomicU64::new(0)));
    let offset = Arc::clone(&ahead);
    ports.clock = Arc::new(move || Timestamp::from_millis(system().as_millis() + offset.load(Ordering::Relaxed)));
    let agent = |ports: &Ports| kage_agent::Config {
        caches: kage_core::caches::CacheSettings::default(),
        contain: Default::default(),
        contained: kage_core::contain::Containment::NOTHING,
        network: Default::default(),
        state_dir: state.clone(),
        coordinator_url: url.clone(),
        credentials: enrolment::stored(&state).unwrap().unwrap(),
        name: format!("renewing at {}", (ports.clock)()),
        slots: 1,
        labels: Default::default(),
        limits: Limits {
            certificate_check: Duration::from_millis(20),
            ..Limits::default()
        },
    };
    let connected = async || {
        wait_for("the agent is connected", async || {
            let listed = owner.fleet().list_agents(v1::ListAgentsRequest::default()).await.ok()?;
            let mut agents = listed.into_inner().agents.into_iter();
            agents.find(|agent| agent.state() == v1::AgentState::Connected)
        })
        .await
    };
    let stop = CancellationToken::new();
    let mut agents = JoinSet::new();
    agents.spawn(kage_agent::run(agent(&ports), ports.clone(), stop.clone()));
    let before = connected().await;
    assert_eq!(before.id, joined.agent.to_string());

    // Two thirds of the hour are over, for the agent.
    let key = std::fs::read(state.join("tls/agent.key")).unwrap();
    ahead.store(u64::try_from((LIFE * 2 / 3).as_millis()).unwrap(), Ordering::Relaxed);
    let renewed = wait_for("the certificate is another one", async || {
        let now = certificate(&state);
        (now != first).then_some(now)
    })
    .await;
    ahead.store(0, Ordering::Relaxed);
    assert!(Validity::of(&renewed).unwrap().until >= validity.until);
    assert_eq!(std::fs::read(state.join("tls/agent.key")).unwrap(), key);

    // A later start uses the new certificate, and is the same agent.
    stop.cancel();
    agents.join_next().await.unwrap().unwrap().unwrap();
    let stop = CancellationToken::new();
    agents.spawn(kage_agent::run(agent(&ports), ports.clone(), stop.clone()));
    let after = wait_for("the agent is back", async || {
        let now = connected().await;
        (now.name != before.name).then_some(now)
    })
    .await;
    assert_eq!(after.id, before.id);
    stop.cancel();
    agents.join_next().await.unwrap().unwrap().unwrap();
    end.cancel();
    coordinators.join_next().await.unwrap().unwrap().unwrap();
}
