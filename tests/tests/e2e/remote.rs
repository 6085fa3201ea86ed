//! A coordinator, two agents that join it, and a person with a token, each with its own home and
//! state folder, over TLS: they share only the network.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kage_tests::repo::{Repo, SOLUTION, VERIFY};

use crate::machines::{Machines, says};

#[tokio::test]
async fn agents_join_over_tls_and_work_for_a_person_with_a_token() {
    let machines = Machines::new();
    let mut coordinator = machines.daemon("b", &["-v", "coordinator", "--listen", "0.0.0.0:0"]);
    let url = machines.listens("b", &mut coordinator).await;
    let url = url.as_str();
    let address = url.strip_prefix("https://").unwrap();

    // Agents. A token of another CA is not sent to any server.
    let join = |labels: &[&str]| {
        let mut arguments = vec!["token", "create", "--role", "agent"];
        arguments.extend(labels);
        machines.done("b", &[], &arguments)
    };
    let first = join(&["--label", "gpu=true"]);
    let parts: Vec<_> = first.split('.').collect();
    let elsewhere = format!("{}.{}.{}.{}", parts[0], "0".repeat(64), parts[2], parts[3]);
    let misled = machines.kage("c", &[], &["agent", "run", "--join", &elsewhere, address]);
    assert_eq!(misled.status.code(), Some(5), "{misled:?}");
    assert!(says(&misled).contains("nothing was sent"), "{}", says(&misled));
    let adapters = machines.adapters("c");
    let arguments = [
        "agent",
        "run",
        "--join",
        &first,
        address,
        "--adapters",
        &adapters,
        "--name",
        "c",
    ];
    let c = machines.daemon("c", &arguments);
    // This one joins with a token from a file, and starts afterwards; the token is not used again.
    let second = machines.dir("d").join("join-token");
    std::fs::write(&second, join(&[])).unwrap();
    let second = second.to_str().unwrap();
    let joining = ["agent", "run", "--coordinator", url, "--join-file", second];
    let joined = machines.kage("d", &[], &[&joining[..], &["--join-only"]].concat());
    assert!(
        joined.status.success() && says(&joined).contains("joined as agent"),
        "{joined:?}"
    );
    let alone = machines.kage("e", &[], &["agent", "run", "--join-only", "--coordinator", url]);
    assert_eq!(alone.status.code(), Some(2), "{alone:?}");
    assert!(says(&alone).contains("--join-file"), "{}", says(&alone));
    let adapters_d = machines.adapters("d");
    let arguments = [&joining[..], &["--adapters", &adapters_d, "--name", "d"]].concat();
    let _d = machines.daemon("d", &arguments);

    // A person with two files and an address.
    let a = machines.dir("a");
    let (token, ca) = (a.join("token"), a.join("ca.pem"));
    std::fs::write(
        &token,
        machines.done("b", &[], &["token", "create", "--role", "submit", "--name", "a"]),
    )
    .unwrap();
    std::fs::copy(machines.dir("b").join("state/coordinator/tls/ca.pem"), &ca).unwrap();
    // As people copy it from a browser.
    let address_with_slash = format!("{url}/");
    let settings = [
        ("KAGE__COORDINATOR__URL", Path::new(&address_with_slash)),
        ("KAGE__COORDINATOR__TOKEN_FILE", token.as_path()),
        ("KAGE__COORDINATOR__CA_FILE", ca.as_path()),
    ];
    let agents = async |wanted: &[(&str, &str)]| machines.agents("a", &settings, wanted).await;
    let listed = agents(&[("c", "AGENT_STATE_CONNECTED"), ("d", "AGENT_STATE_CONNECTED")]).await;
    let labels = |name: &str| {
        let mut listed = listed.as_array().unwrap().iter();
        listed.find(|agent| agent["name"] == name).unwrap()["labels"].clone()
    };
    assert_eq!(labels("c")["gpu"], "true");
    assert_eq!(labels("d").get("gpu"), None);

    // Each side's description of itself.
    let diagnosis = |machine: &str, arguments: &[&str]| -> serde_json::Value {
        let all = [&["doctor", "--format", "json"], arguments].concat();
        serde_json::from_slice(&machines.kage(machine, &[], &all).stdout).unwrap()
    };
    let worker = diagnosis("c", &["--coordinator", url]);
    assert_eq!(worker["connection"]["reached"], true, "{worker:#}");
    assert!(worker["connection"]["certificate_until"].is_string(), "{worker:#}");
    assert!(
        worker["connection"]["clock_ahead_seconds"].as_f64().unwrap().abs() < 60.0,
        "{worker:#}"
    );
    assert!(worker["coordinator_data"].is_null(), "{worker:#}");
    let server = diagnosis("b", &[]);
    assert_eq!(server["connection"]["reached"], true, "{server:#}");
    assert!(server["coordinator_data"]["sync_millis"].is_number(), "{server:#}");
    assert!(
        server["coordinator_data"]["certificate_until"].is_string(),
        "{server:#}"
    );

    // What each machine is for is all that it needs.
    let healthy = |machine: &str, settings: &[_], role: &str| {
        let checked = machines.kage(machine, settings, &["doctor", "--role", role]);
        assert_eq!(checked.status.code(), Some(0), "{machine} {role}: {checked:?}");
    };
    healthy("b", &[], "coordinator");
    healthy("a", &settings, "person");
    let nothing = machines.kage("e", &[], &["doctor", "--role", "coordinator"]);
    assert_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    let said = String::from_utf8_lossy(&nothing.stdout);
    assert!(said.contains("no coordinator runs here"), "{said}");
    assert!(said.contains("no coordinator has kept its data in"), "{said}");

    // The task: the base is sent, the result is fetched, and no other machine's folder is needed.
    let repo = Repo::sample(&a.join("repo"));
    let path = repo.path().to_str().unwrap();
    let run = [
        "run",
        "make the test pass",
        "--with",
        "shell:solve",
        "--verify",
        VERIFY,
        "--agents",
        "gpu=true",
        "--repo",
        path,
    ];
    machines.done("a", &settings, &run);
    machines.done("a", &settings, &["apply", "--repo", path]);
    assert_eq!(
        std::fs::read_to_string(repo.path().join("add.sh")).unwrap().trim(),
        SOLUTION.trim()
    );
    let shown = machines.newest("a", &settings);
    assert_eq!(shown["sessions"][0]["agent"], "c", "{shown:#}");

    // The limits of a submit token, and a used join token.
    let drained = machines.kage("a", &settings, &["agent", "drain", "d"]);
    assert_eq!(drained.status.code(), Some(5), "{drained:?}");
    let stolen = machines.kage("e", &[], &["agent", "run", "--join", &first, address]);
    assert_eq!(stolen.status.code(), Some(5), "{stolen:?}");
    assert!(says(&stolen).contains("used already"), "{}", says(&stolen));

    // A later start needs the address only; the key is its owner's alone.
    let key = machines.dir("c").join("state/agent/tls/agent.key");
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(c.stop().await.success());
    agents(&[("c", "AGENT_STATE_DISCONNECTED")]).await;
    let arguments = [
        "agent",
        "run",
        "--coordinator",
        url,
        "--adapters",
        &adapters,
        "--name",
        "c",
    ];
    let _c = machines.daemon("c", &arguments);
    agents(&[("c", "AGENT_STATE_CONNECTED")]).await;

    machines.done("b", &[], &["agent", "revoke", "d"]);
    agents(&[("c", "AGENT_STATE_CONNECTED"), ("d", "AGENT_STATE_DISCONNECTED")]).await;
    let outcast = diagnosis("d", &["--coordinator", url]);
    assert_eq!(outcast["connection"]["reached"], false, "{outcast:#}");
    assert!(outcast["problems"].to_string().contains("revoked"), "{outcast:#}");
}
