//! People in a simulated world: they create tasks with calls that they repeat until they are
//! answered, and sometimes once more; they cancel some, and watch each to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kage_proto::convert::time::span;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_tests::chaos::clients::Person;
use kage_tests::chaos::scripted_agent::SCRIPTED_AGENT;
use kage_tests::tasks::{Describe, task};

use crate::adapter::SCRIPTED;
use crate::commands::{JUDGE, JUDGE_ALOUD, SETUP};
use crate::forge::REPOSITORY;
use crate::hosts::client;
use crate::world::{Dice, World, count};

/// The wait before a call that was not answered is made again.
const AGAIN: Duration = Duration::from_millis(200);

/// What one person does during the simulation.
pub(crate) async fn day(world: Arc<World>, name: String) -> turmoil::Result {
    let dice = world.dice(&name);
    let person = Person::new(&name, client(), world.record.clone());
    while turmoil::sim_elapsed().is_some_and(|elapsed| elapsed < world.healed) {
        tokio::time::sleep(dice.millis(0, 6000)).await;
        let request = world.record.draw();
        let spec = spec(&world, &dice, &request);
        let Some(id) = create(&person, &request, &spec).await else {
            continue;
        };
        world.log(format_args!("{name} has task {id}"));
        let cancelled = async {
            if dice.chance(150) {
                tokio::time::sleep(dice.millis(0, 5000)).await;
                person.cancel(&id).await;
            }
        };
        let repeated = async {
            if dice.chance(300) {
                tokio::time::sleep(dice.millis(0, 8000)).await;
                count(&world.counts.repeats);
                // Every answer is recorded.
                drop(person.try_create(&request, spec.clone()).await);
            }
        };
        let (end, (), ()) = tokio::join!(person.watch(&id), cancelled, repeated);
        world.log(format_args!("{name} saw the end of {id}: {:?}", end.state()));
    }
    world.busy.fetch_sub(1, Ordering::Relaxed);
    Ok(())
}

fn spec(world: &World, dice: &Dice, request: &str) -> v1::TaskSpec {
    let mut spec = task(&format!("task of {request}")).policy(|policy| {
        policy.timeout = Some(span(Duration::from_secs(40)));
        policy.idle_timeout = Some(span(Duration::from_secs(8)));
        policy.max_attempts = u32::try_from(1 + dice.below(3)).unwrap();
        policy.priority = i32::try_from(dice.below(3)).unwrap() - 1;
    });
    let with_files = dice.chance(600);
    if with_files {
        spec.repository = Some(v1::Repository {
            name: REPOSITORY.to_owned(),
            base_commit: world.bases[usize::try_from(dice.below(world.bases.len() as u64)).unwrap()].to_string(),
            ..v1::Repository::default()
        });
        spec = spec.policy(|policy| on_files(dice, policy));
    }
    for n in 0..1 + dice.below(3) {
        // An agent made of calls has no files.
        let adapter = if with_files || dice.chance(700) {
            SCRIPTED
        } else {
            SCRIPTED_AGENT
        };
        spec = spec.session(&format!("{adapter}-{n}"), adapter, "");
    }
    spec
}

/// How work on files is checked.
fn on_files(dice: &Dice, policy: &mut v1::Policy) {
    policy.requirements.insert("ground".to_owned(), REPOSITORY.to_owned());
    policy.max_reworks = dice.pick(&[None, Some(0), Some(2)]);
    if dice.chance(200) {
        return;
    }
    let verify = policy.verify.get_or_insert_default();
    verify.timeout = Some(span(Duration::from_secs(15)));
    // Each verify of a session begins its output anew, so only the verify of one that ends with it
    // says something.
    let once = policy.max_reworks == Some(0);
    verify.verify = if once { JUDGE_ALOUD } else { JUDGE }.to_owned();
    if dice.chance(300) {
        verify.setup = SETUP.to_owned();
    }
    let kind = match dice.below(6) {
        0 => Some(v1::course::Kind::FirstVerified(1)),
        1 => Some(v1::course::Kind::Ladder(v1::Ladder {})),
        _ => None,
    };
    policy.course = kind.map(|kind| v1::Course { kind: Some(kind) });
}

/// Asks until there is an answer. `None` when it was refused.
async fn create(person: &Person, request: &str, spec: &v1::TaskSpec) -> Option<String> {
    loop {
        match person.try_create(request, spec.clone()).await {
            Ok(id) => return Some(id),
            Err(ApiError::Unavailable { .. } | ApiError::Internal { .. }) => tokio::time::sleep(AGAIN).await,
            Err(_) => return None,
        }
    }
}
