//! The network of programs in boxes, from the settings to what a person reads.

use axum::Router;
use kage_tests::command::Person;
use kage_tests::repo::Repo;
use tokio::net::TcpListener;

/// Answers as a repository that has one branch.
async fn repository() -> u16 {
    let refs = format!("{}\trefs/heads/main\n", "1".repeat(40));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = Router::new().fallback(move || std::future::ready(refs.clone()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

#[tokio::test]
async fn sessions_and_verify_reach_what_is_listed_and_a_refusal_is_told_once() {
    let port = repository().await;
    let person = Person::new();
    let settings = format!("[agent.contain]\ntier = 'T2'\n[network]\nallow = ['localhost:{port}']\n");
    std::fs::write(person.path("config/kage/config.toml"), settings).unwrap();
    let listed = format!("git ls-remote http://localhost:{port}/");
    let maker = format!(
        "cat >/dev/null; {listed} | grep -q main || exit 3; \
         for name in a b; do git ls-remote http://registry.example.com/$name.git 2>&1 | grep -q 403 || exit 4; done; \
         echo 1 > one.txt"
    );
    person.adapter("maker", &maker);
    let repo = Repo::sample(&person.path("repo"));
    let verify = format!("{listed} | grep -q main");
    let run = ["run", "make it", "--with", "maker", "--verify", &verify];
    let run = person.kage(repo.path(), &run).await;
    // Where the agent has no T2 it says why, here or as it ends.
    let agents = person.kage(repo.path(), &["agent", "ls", "--format", "json"]).await;
    let log = std::fs::read_to_string(person.path("state/daemon.log")).unwrap_or_default();
    assert!(
        run.code == 0 && agents.out.contains("CONTAINMENT_TIER_T2"),
        "{run:#?}\n{agents:#?}\n{log}"
    );
    let refused = "registry.example.com is not on the list of this agent: [network] allow = [\"registry.example.com\"]";
    assert_eq!(run.err.matches(refused).count(), 1, "{run:#?}");
    // What a person reads later, when nothing watched.
    let logs = person.kage(repo.path(), &["logs"]).await;
    assert_eq!(logs.err.matches(refused).count(), 1, "{logs:#?}");
    let compared = person.kage(repo.path(), &["compare"]).await;
    assert!(compared.out.contains(refused), "{compared:#?}");
}
