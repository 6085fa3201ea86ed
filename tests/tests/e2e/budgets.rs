//! Sessions race under a budget. What the provider billed is never above it, also when the coordinator is
//! killed meanwhile, and equals the ledger to the last unit.

use std::collections::BTreeSet;
use std::time::Duration;

use kage_core::price::PriceTable;
use kage_core::time::Timestamp;
use kage_core::usage::Usage;
use kage_proto::v1;
use kage_scripted::{Answer, Block, Matcher, Reply, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::repo::VERIFY;
use kage_tests::tasks::{Describe, task};
use kage_tests::wait::wait_for;
use serde_json::json;

const OPUS: &str = "claude-opus-5-5";
/// Two dollars and a half.
const BUDGET: i64 = 2_500_000_000_000;
/// Bytes of each answer: below the shortest one that is asked for, whose tokens cost a few cents.
const ANSWER: usize = 12_000;

/// A model that reads a file again and again, with many words each time.
fn chatty() -> Script {
    let turns = (0..60).map(|turn| {
        let words = format!("step {turn} ").repeat(ANSWER / 8);
        let look = Block::tool("read_file", json!({"path": "add.sh", "offset": turn}));
        Turn::from(Reply::new([Block::Text(words), look])).delayed(Duration::from_millis(30))
    });
    Script::new("chatty", Matcher::model(OPUS), turns)
}

/// What the provider's own ledger says of all calls, in pico-dollars by the prices of Kage.
fn billed(server: &ScriptedServer) -> i64 {
    let prices = PriceTable::builtin();
    let row = prices.find(OPUS, Timestamp::from_millis(u64::MAX)).unwrap();
    let calls = server.requests_of("chatty");
    let amounts = calls.into_iter().filter_map(|request| match request.answer {
        Answer::Reply(call) => row.amount(&Usage {
            input: call.input,
            cache_write_5m: call.cache_write_5m,
            cache_write_1h: call.cache_write_1h,
            cache_read: call.cache_read,
            output: call.output,
            ..Usage::default()
        }),
        _ => None,
    });
    amounts.map(|amount| amount.0).sum()
}

#[tokio::test]
async fn three_sessions_at_opus_prices_stay_under_a_budget_across_a_restart() {
    let server = ScriptedServer::start(vec![chatty()]).await.unwrap();
    let mut cluster = Cluster::start().await;
    cluster
        .add_agent(AgentOptions::named("agent").anthropic(&server.url()))
        .await;
    let repo = cluster.sample();
    let mut spec = task("make the test pass").on(&repo).verified_by(VERIFY);
    for name in ["one", "two", "three"] {
        spec = spec.session(name, "claude-api", OPUS);
    }
    spec.policy.get_or_insert_default().budget = Some(v1::TaskBudget {
        task_pico: Some(BUDGET),
        ..v1::TaskBudget::default()
    });
    let id = cluster.create(spec).await;
    wait_for("all sessions call the model", async || {
        (server.requests().len() >= 9).then_some(())
    })
    .await;
    cluster.crash_coordinator().await;
    let ended = cluster.ended(&id).await;

    let spent = billed(&server);
    assert!(spent <= BUDGET, "{spent} of {BUDGET}");
    assert!(spent > BUDGET / 2, "only {spent} of {BUDGET} was used");
    assert_eq!(ended.state(), v1::TaskState::Failed, "{ended:#?}");
    for session in &ended.sessions {
        let failure = session.failure.as_ref().unwrap();
        assert_eq!(failure.kind(), v1::FailureKind::BudgetExceeded, "{failure:?}");
        assert!(
            failure.message.contains("the budget of the task is used up"),
            "{failure:?}"
        );
    }
    // Nothing is held back any more: it would be in the ledger whole, as an estimate.
    let request = v1::GetCostsRequest {
        filter: Some(v1::CallFilter {
            task_id: id.clone(),
            ..v1::CallFilter::default()
        }),
        by: v1::CostsBy::Task.into(),
        ..v1::GetCostsRequest::default()
    };
    let costs = cluster.client().costs().get_costs(request).await.unwrap().into_inner();
    let money = costs.total.unwrap().money;
    assert_eq!(money.len(), 1, "{money:?}");
    assert_eq!(
        (money[0].provenance(), money[0].pico),
        (v1::Provenance::Billed, Some(spent))
    );
    let of_sessions = ended.sessions.iter().flat_map(|session| &session.money);
    assert_eq!(of_sessions.filter_map(|money| money.pico).sum::<i64>(), spent);

    // Each call has a row, with its account and the provider's own id.
    let mut rows: Vec<v1::LedgerCall> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListCallsRequest {
            page_size: 7,
            page_token,
            ..v1::ListCallsRequest::default()
        };
        let page = cluster.client().costs().list_calls(request).await.unwrap().into_inner();
        rows.extend(page.calls);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(rows.len(), server.requests_of("chatty").len());
    let accounts: BTreeSet<&str> = rows.iter().map(|row| row.account.as_str()).collect();
    assert_eq!(accounts.len(), 1, "{accounts:?}");
    assert!(
        rows.iter()
            .all(|row| !row.provider_request_id.is_empty() && !row.price.is_empty())
    );
}

#[tokio::test]
async fn a_program_that_asks_for_no_calls_is_not_started_when_its_budget_is_used_up() {
    let mut cluster = Cluster::start().await;
    let started = cluster.outside().join("started");
    let script = format!("touch '{}'", started.display());
    cluster
        .add_agent(AgentOptions::named("agent").script("program", script))
        .await;
    let repo = cluster.sample();
    let mut spec = task("make the test pass")
        .on(&repo)
        .session("program", SHELL, "program");
    spec.policy.get_or_insert_default().budget = Some(v1::TaskBudget {
        task_tokens: Some(0),
        ..v1::TaskBudget::default()
    });
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    let failure = ended.sessions[0].failure.as_ref().unwrap();
    assert_eq!(failure.kind(), v1::FailureKind::BudgetExceeded, "{failure:?}");
    assert!(failure.message.contains("0 of 0 tokens"), "{failure:?}");
    assert!(!started.exists(), "the program was started");
}
