//! What a repository brings that runs programs is used after its person agreed to it, as it was then.

use kage_tests::command::Person;
use kage_tests::repo::{Repo, VERIFY};

/// An agent of the repository's own that speaks ACP; what its session begins with is in its worktree.
const OWN: &str = r#"
name = "own"
command = "sh"
args = ["{manifest_dir}/own.sh"]
acp = {}
"#;

const SCRIPT: &str = r#"
next() { read -r line || exit 0; id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/'); }
result() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
next; result '{"protocolVersion":1}'
next; printf '%s\n' "$line" > begun.json; result '{"sessionId":"s-1"}'
next; echo 'add() { echo $(($1 + $2)); }' > add.sh
printf '{"method":"session/update","params":{"update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"Mended."}}}}\n'
result '{"stopReason":"end_turn"}'
"#;

const SERVERS: &str = r#"{"mcpServers": {"docs": {"command": "docs-server", "args": ["--all"]}}}"#;

#[tokio::test]
async fn adapters_and_servers_of_a_repository_run_after_an_agreement() {
    let person = Person::new();
    let repo = Repo::sample(&person.path("repo"));
    let folder = repo.path().join(".kage/adapters");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("own.toml"), OWN).unwrap();
    std::fs::write(folder.join("own.sh"), SCRIPT).unwrap();
    std::fs::write(repo.path().join(".mcp.json"), SERVERS).unwrap();
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    let run = ["run", "mend the sum", "--with", "own", "--verify", VERIFY];

    let refused = kage(&run).await;
    assert_eq!(refused.code, 2, "{refused:#?}");
    for part in ["own", "\"sh\"", "`kage adapter trust`", "you did not agree to that yet"] {
        assert!(refused.err.contains(part), "{part}: {refused:#?}");
    }
    let listed = kage(&["adapter", "ls"]).await;
    assert!(
        !listed.out.contains("own.sh") && !listed.out.lines().any(|line| line.starts_with("own ")),
        "{listed:#?}"
    );

    let agreed = kage(&["adapter", "trust"]).await;
    assert_eq!(agreed.code, 0, "{agreed:#?}");
    assert!(agreed.out.contains("adapter own runs sh"), "{agreed:#?}");
    assert!(
        agreed.out.contains("MCP server docs runs docs-server --all"),
        "{agreed:#?}"
    );
    let ran = kage(&run).await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    let patch = kage(&["diff"]).await;
    assert!(patch.out.contains(r#""command":"docs-server""#), "{patch:#?}");

    // Another script is another agreement, and until then the old one is not used either.
    std::fs::write(folder.join("own.sh"), "exit 1").unwrap();
    let changed = kage(&run).await;
    assert_eq!(changed.code, 2, "{changed:#?}");
    assert!(
        changed.err.contains("its files changed since you agreed"),
        "{changed:#?}"
    );
    std::fs::write(folder.join("own.sh"), SCRIPT).unwrap();
    std::fs::write(repo.path().join(".mcp.json"), SERVERS.replace("docs-server", "other")).unwrap();
    let without = kage(&run).await;
    assert_eq!(without.code, 0, "{without:#?}");
    assert!(
        without.err.contains("sessions do not get the servers of .mcp.json"),
        "{without:#?}"
    );
    let patch = kage(&["diff"]).await;
    assert!(patch.out.contains(r#""mcpServers":[]"#), "{patch:#?}");

    // A name that is taken, and an agreement that ends.
    std::fs::write(folder.join("own.toml"), OWN.replace("\"own\"", "\"codex\"")).unwrap();
    let taken = kage(&["adapter", "trust"]).await;
    assert_eq!(taken.code, 2, "{taken:#?}");
    assert!(
        taken.err.contains("there is an adapter codex already (built in)"),
        "{taken:#?}"
    );
    std::fs::write(folder.join("own.toml"), OWN).unwrap();
    let withdrawn = kage(&["adapter", "trust", "--withdraw"]).await;
    assert_eq!(withdrawn.code, 0, "{withdrawn:#?}");
    assert_eq!(kage(&run).await.code, 2);
}
