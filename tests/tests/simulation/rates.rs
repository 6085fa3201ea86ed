//! A fleet under the rate limit and the budgets of one account: every session calls the model without a pause, agents
//! and the coordinator are killed, answers are lost, and the provider halves its limit in the middle. The provider
//! counts exactly and keeps a ledger of its own.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_agent::Registry;
use kage_agent::adapters::port::{Adapter, AdapterEnd, Reporter, ReporterClosed, SessionInput};
use kage_coordinator::store::{CallFilter, Store};
use kage_core::call::{Ask, CallEnd, LimitTold, OutputBounds, Prefix, RateTold, Spent};
use kage_core::event::EventBody;
use kage_core::failure::Failure;
use kage_core::fleet::AdapterInfo;
use kage_core::id::{Digest, TaskId};
use kage_core::price::PriceTable;
use kage_core::time::Timestamp;
use kage_core::usage::Usage;
use kage_proto::convert::time::span;
use kage_proto::v1;
use kage_tests::tasks::{Describe, create, task};
use tokio_util::sync::CancellationToken;

use crate::hosts::{self, Bell, COORDINATOR, Crew};
use crate::run::Plant;
use crate::world::{Dice, World};

const CALLER: &str = "caller";
const MODEL: &str = "claude-opus-5-5";
/// Tokens of each call.
const INPUT: u64 = 2_000;
const OUTPUT: u64 = 300;
/// Tokens that an answer may have.
const MOST_OUTPUT: NonZeroU32 = const { NonZeroU32::new(8_000).unwrap() };
/// Requests a minute, at first.
const LIMIT: f64 = 300.0;
/// A budget that does not last, in pico-dollars.
const SMALL: i64 = 500_000_000_000;
const LARGE: i64 = 1_000 * SMALL;

/// Longer than sessions call.
const LONG: Duration = Duration::from_secs(60 * 60);

/// How large the story is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Story {
    pub(crate) seed: u64,
    pub(crate) agents: u64,
    pub(crate) tasks: u64,
    pub(crate) sessions: u64,
    /// How long sessions call.
    pub(crate) calls_for: Duration,
}

/// The provider's side of the account.
#[derive(Debug)]
struct Provider {
    limit: f64,
    left: f64,
    at: Duration,
    allowed: f64,
    served: BTreeMap<TaskId, u64>,
    refused: u64,
}

impl Provider {
    fn advance(&mut self, now: Duration) {
        let more = self.limit * now.saturating_sub(self.at).as_secs_f64() / 60.0;
        let left = (self.left + more).min(self.limit);
        self.allowed += left - self.left;
        (self.left, self.at) = (left, now);
    }

    fn halve(&mut self, now: Duration) {
        self.advance(now);
        self.limit /= 2.0;
        let left = self.left.min(self.limit);
        self.allowed -= self.left - left;
        self.left = left;
    }

    /// Whether it answers a call, and what it tells with that.
    fn call(&mut self, task: TaskId) -> (bool, RateTold) {
        self.advance(turmoil::sim_elapsed().unwrap_or_default());
        let is_served = self.left >= 1.0;
        let mut told = RateTold::default();
        if is_served {
            self.left -= 1.0;
            *self.served.entry(task).or_default() += 1;
        } else {
            self.refused += 1;
            told.retry_after = Some(Duration::from_secs(1));
        }
        told.requests = Some(LimitTold {
            limit: Some(self.limit as u64),
            remaining: self.left as u64,
            reset: Some(Duration::from_secs_f64((self.limit - self.left) / self.limit * 60.0)),
        });
        (is_served, told)
    }
}

/// Calls the model until it is time to end.
struct Caller {
    world: Arc<World>,
    provider: Arc<Mutex<Provider>>,
    until: Duration,
}

impl Adapter for Caller {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: CALLER.parse().expect("it is a name"),
            version: "1".to_owned(),
            unavailable: None,
            resumes: self.resumes(),
            access: None,
            slots: 0,
            hears: false,
        }
    }

    fn secrets(&self) -> Vec<kage_agent::process::Secret> {
        Vec::new()
    }

    fn uses_scratch(&self) -> bool {
        false
    }

    fn asks_for_calls(&self) -> bool {
        true
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        async move {
            let dice = self.world.dice(&format!("calls of {}", input.attempt));
            let calling = self.calls(&dice, &input, &reporter);
            match stop.run_until_cancelled(calling).await {
                Some(Ok(Ok(()))) => AdapterEnd::Done { summary: String::new() },
                Some(Ok(Err(failure))) => AdapterEnd::Failed(failure),
                Some(Err(ReporterClosed)) | None => AdapterEnd::Stopped,
            }
        }
        .boxed()
    }
}

impl Caller {
    async fn calls(
        &self,
        dice: &Dice,
        input: &SessionInput,
        reporter: &Reporter,
    ) -> Result<Result<(), Failure>, ReporterClosed> {
        let mut prefix = Some(Prefix {
            digest: Digest::of(input.task.to_string().as_bytes()),
            tokens: INPUT,
        });
        while turmoil::sim_elapsed().unwrap_or_default() < self.until {
            let ask = Ask {
                account: "anthropic/0123456789ab".parse().expect("it is a name"),
                model: MODEL.to_owned(),
                free: false,
                prefix: prefix.clone(),
                input: INPUT + 500,
                output: OutputBounds::of(MOST_OUTPUT, false),
            };
            let granted = match input.calls.reserve(ask, |_| reporter.alive()).await {
                Ok(granted) => granted,
                Err(refused) => return Ok(Err(refused.into())),
            };
            tokio::time::sleep(dice.millis(1, 80)).await;
            let (is_served, told) = self.provider.lock().unwrap().call(input.task);
            if !is_served {
                let wait = told.retry_after.unwrap_or_default();
                granted.release(&told);
                tokio::time::sleep(wait).await;
                continue;
            }
            if dice.chance(10) {
                // The connection breaks before the answer is there.
                drop(granted);
                continue;
            }
            granted.started(told);
            prefix = None;
            tokio::time::sleep(dice.millis(300, 3_000)).await;
            let usage = Usage {
                input: INPUT,
                output: OUTPUT,
                ..Usage::default()
            };
            let spent = Spent {
                model: MODEL.to_owned(),
                usage,
                end: CallEnd::Whole,
                request: None,
            };
            let call = granted.commit(spent, &RateTold::default());
            let used = EventBody::UsageRecorded {
                model: MODEL.to_owned(),
                usage,
                reported: None,
                metered: true,
                tools: None,
                call: Some(call),
            };
            reporter.event(used).await?;
        }
        Ok(Ok(()))
    }
}

/// Shares of a run.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) refused: f64,
    pub(crate) throughput: f64,
    pub(crate) jain: f64,
}

/// Plays the story. Panics where money is not kept.
pub(crate) fn play(story: Story) -> Shares {
    let world = World::new(story.seed, Plant::Nothing);
    let mut sim = turmoil::Builder::new()
        .rng_seed(story.seed)
        .epoch(std::time::UNIX_EPOCH)
        .tick_duration(Duration::from_millis(10))
        .simulation_duration(Duration::from_secs(60 * 60))
        .max_message_latency(Duration::from_millis(20))
        .build();
    let store = hosts::store(&world, Plant::Nothing);
    let provider = Arc::new(Mutex::new(Provider {
        limit: LIMIT,
        left: LIMIT,
        at: Duration::ZERO,
        allowed: LIMIT,
        served: BTreeMap::new(),
        refused: 0,
    }));
    let (shared, kept, bell) = (Arc::clone(&world), store.clone(), Bell::default());
    sim.host(COORDINATOR, move || hosts::coordinator(&shared, &kept, &bell));
    let slots = u32::try_from((story.tasks * story.sessions).div_ceil(story.agents)).unwrap();
    let agents: Vec<String> = (1..=story.agents).map(|n| format!("agent-{n}")).collect();
    for name in agents.clone() {
        let (shared, bell) = (Arc::clone(&world), Bell::default());
        let caller = Arc::new(Caller {
            world: Arc::clone(&world),
            provider: Arc::clone(&provider),
            until: story.calls_for,
        });
        let adapters = Registry::from([(CALLER.parse().expect("it is a name"), caller as _)]);
        sim.host(name.clone(), move || {
            let crew = Crew {
                slots,
                adapters: adapters.clone(),
            };
            hosts::agent_with(&shared, &name, &bell, crew)
        });
    }
    let ended: Arc<Mutex<Option<Vec<v1::Task>>>> = Arc::default();
    let told = Arc::clone(&ended);
    sim.client("person", async move {
        let tasks = person(story).await;
        *told.lock().unwrap() = Some(tasks);
        Ok(())
    });
    let part = |n: u32| story.calls_for * n / 10;
    let mut faults = vec![
        (part(3), Fault::Crash(COORDINATOR)),
        (part(3) + Duration::from_secs(2), Fault::Start(COORDINATOR)),
        (part(4), Fault::Crash(&agents[0])),
        (part(4) + Duration::from_secs(3), Fault::Start(&agents[0])),
        (part(5), Fault::Halve),
        (part(7), Fault::Crash(&agents[1])),
        (part(7) + Duration::from_secs(3), Fault::Start(&agents[1])),
    ];
    faults.reverse();
    let mut counted = None;
    let tasks = loop {
        sim.step().expect("nobody fails");
        while let Some((_, fault)) = faults.pop_if(|(at, _)| *at <= sim.elapsed()) {
            match fault {
                Fault::Crash(host) => sim.crash(host),
                Fault::Start(host) => sim.bounce(host),
                Fault::Halve => provider.lock().unwrap().halve(sim.elapsed()),
            }
        }
        if counted.is_none() && sim.elapsed() >= story.calls_for {
            counted = Some(shares(&provider, sim.elapsed()));
        }
        if let Some(tasks) = ended.lock().unwrap().take() {
            break tasks;
        }
    };
    let provider = provider.lock().unwrap();
    check_money(&store, &tasks, &provider);
    counted.expect("sessions call for as long as they are to")
}

enum Fault<'a> {
    Crash(&'a str),
    Start(&'a str),
    Halve,
}

/// What was served by now. The task with the small budget has less, and is not compared.
fn shares(provider: &Mutex<Provider>, now: Duration) -> Shares {
    let mut provider = provider.lock().unwrap();
    provider.advance(now);
    let served: Vec<f64> = provider.served.values().map(|served| *served as f64).collect();
    let sum: f64 = served.iter().sum();
    let poorest = served.iter().copied().fold(f64::INFINITY, f64::min);
    let others: Vec<f64> = served.into_iter().filter(|served| *served > poorest).collect();
    let of_others: f64 = others.iter().sum();
    let squares: f64 = others.iter().map(|served| served * served).sum();
    let refused = provider.refused as f64;
    Shares {
        refused: refused / (refused + sum),
        throughput: sum / provider.allowed,
        jain: of_others * of_others / (others.len() as f64 * squares),
    }
}

/// Creates the tasks and waits for their ends. The first one has a budget that does not last.
async fn person(story: Story) -> Vec<v1::Task> {
    let client = hosts::client();
    while client
        .tasks()
        .list_tasks(v1::ListTasksRequest::default())
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut ids = Vec::new();
    for n in 0..story.tasks {
        let mut spec = task(&format!("task {n}")).policy(|policy| {
            policy.max_attempts = 9;
            policy.timeout = Some(span(LONG));
            policy.idle_timeout = Some(span(LONG));
            policy.budget = Some(v1::TaskBudget {
                task_pico: Some(if n == 0 { SMALL } else { LARGE }),
                ..v1::TaskBudget::default()
            });
        });
        for session in 0..story.sessions {
            spec = spec.session(&format!("session-{session}"), CALLER, MODEL);
        }
        ids.push(create(&client, spec).await);
    }
    let mut ended = Vec::new();
    for id in ids {
        loop {
            let request = v1::GetTaskRequest {
                task_id: id.clone(),
                view: v1::TaskView::Full.into(),
            };
            let answer = client.tasks().get_task(request).await;
            let now = answer.ok().and_then(|answer| answer.into_inner().task);
            match now {
                Some(now) if now.state() != v1::TaskState::Running => break ended.push(now),
                Some(_) | None => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }
    ended
}

/// No task spent more than its budget, by the provider's ledger or by the coordinator's, and nothing is held back.
fn check_money(store: &Store, tasks: &[v1::Task], provider: &Provider) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (rows, held) = runtime.expect("a runtime").block_on(async {
        let mut rows = Vec::new();
        loop {
            let after = rows.last().map_or(0, |(number, _)| *number);
            let page = store.calls(&CallFilter::default(), after, u32::MAX).await.unwrap();
            if page.is_empty() {
                break;
            }
            rows.extend(page);
        }
        (rows, store.reservations().await.unwrap())
    });
    assert_eq!(held, [], "nothing is held back at the end");
    let prices = PriceTable::builtin();
    let row = prices.find(MODEL, Timestamp::from_millis(u64::MAX)).unwrap();
    let usage = Usage {
        input: INPUT,
        output: OUTPUT,
        ..Usage::default()
    };
    let each = row.amount(&usage).unwrap().0;
    for (n, task) in tasks.iter().enumerate() {
        let budget = if n == 0 { SMALL } else { LARGE };
        let id: TaskId = task.id.parse().unwrap();
        let served = i64::try_from(provider.served.get(&id).copied().unwrap_or_default()).unwrap();
        let of_task = rows.iter().filter(|(_, row)| row.task == id);
        let ledger: i64 = of_task.map(|(_, row)| row.amount().0).sum();
        assert!(
            served * each <= ledger,
            "task {n}: {served} calls, and {ledger} in the ledger"
        );
        assert!(ledger <= budget, "task {n}: {ledger} of {budget}");
    }
    let first = &tasks[0];
    let over = first.sessions.iter().filter(|session| {
        let failure = session.failure.as_ref();
        failure.is_some_and(|failure| failure.kind() == v1::FailureKind::BudgetExceeded)
    });
    assert_eq!(over.count(), first.sessions.len(), "{first:#?}");
}
