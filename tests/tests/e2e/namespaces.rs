//! The whole product over a separate network: a coordinator, two agents and a person on four
//! machines with their own addresses, with TLS, and without any help of loopback or a shared
//! folder.

use std::path::Path;

use kage_tests::programs;
use kage_tests::repo::{Repo, SOLUTION, VERIFY};

use crate::machines::{Machines, says};
use crate::network::Network;

#[tokio::test]
async fn four_machines_on_a_network_of_their_own() {
    let network = match Network::join(&["coordinator", "one", "two", "client"]) {
        Ok(network) => network,
        Err(reason) => return programs::skip("namespaces", &reason),
    };
    let address = format!("{}:7443", network.address("coordinator"));
    let url = format!("https://{address}");
    let machines = Machines::on(network);
    let mut coordinator = machines.daemon("coordinator", &["coordinator", "--listen", "0.0.0.0:7443"]);
    machines.listens("coordinator", &mut coordinator).await;

    let mut agents = Vec::new();
    for name in ["one", "two"] {
        let token = machines.done("coordinator", &[], &["token", "create", "--role", "agent"]);
        let adapters = machines.adapters(name);
        let arguments = [
            "agent",
            "run",
            "--join",
            &token,
            &address,
            "--name",
            name,
            "--slots",
            "1",
            "--adapters",
            &adapters,
        ];
        agents.push(machines.daemon(name, &arguments));
    }

    // The person has an address and two files, which came some other way.
    let home = machines.dir("client");
    let (token, ca) = (home.join("token"), home.join("ca.pem"));
    let created = machines.done(
        "coordinator",
        &[],
        &["token", "create", "--role", "submit", "--name", "client"],
    );
    std::fs::write(&token, created).unwrap();
    std::fs::copy(machines.dir("coordinator").join("state/coordinator/tls/ca.pem"), &ca).unwrap();
    let settings = [
        ("KAGE__COORDINATOR__URL", Path::new(&url)),
        ("KAGE__COORDINATOR__TOKEN_FILE", token.as_path()),
        ("KAGE__COORDINATOR__CA_FILE", ca.as_path()),
    ];
    let connected = [("one", "AGENT_STATE_CONNECTED"), ("two", "AGENT_STATE_CONNECTED")];
    machines.agents("client", &settings, &connected).await;

    // Two sessions and two agents with one slot each: both have to work.
    let repo = Repo::sample(&home.join("repo"));
    let path = repo.path().to_str().unwrap();
    let run = [
        "run",
        "make the test pass",
        "--with",
        "shell:solve",
        "--repeat",
        "2",
        "--verify",
        VERIFY,
        "--repo",
        path,
    ];
    machines.done("client", &settings, &run);
    let shown = machines.newest("client", &settings);
    let sessions = shown["sessions"].as_array().unwrap();
    assert!(
        sessions
            .iter()
            .all(|session| session["state"] == "SESSION_STATE_VERIFIED"),
        "{shown:#}"
    );
    machines.done("client", &settings, &["apply", "--repo", path]);
    let landed = std::fs::read_to_string(repo.path().join("add.sh")).unwrap();
    assert_eq!(landed.trim(), SOLUTION.trim());

    // Loopback of one machine is not that of another.
    let wrong = [
        ("KAGE__COORDINATOR__URL", Path::new("https://127.0.0.1:7443")),
        settings[1],
        settings[2],
    ];
    let lost = machines.kage("client", &wrong, &["ls"]);
    assert_eq!(lost.status.code(), Some(8), "{}", says(&lost));
}
