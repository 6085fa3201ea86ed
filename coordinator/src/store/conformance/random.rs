//! Random commands on SQLite and on the model: every outcome and every answer must be equal, and
//! the invariants hold after each step.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kage_core::attempt::EndReason;
use kage_core::checkpoint::CheckpointReason;
use kage_core::event::{Event, EventBody, VerdictKind};
use kage_core::id::{Digest, JobId, ProjectId};
use kage_core::priority::Priority;
use kage_core::task::{Course, TaskOrigin};
use proptest::prelude::*;

use super::faults::{Fault, Faulty, fault};
use super::fixture::{
    activity, agent, agent_id, append, attempt_id, boot_id, claimed, committed, crashed, create, event, exhausted,
    request, spec, start, task_id, token, verdict,
};
use super::stories::taken;
use super::{forgetful, run, sqlite};
use crate::store::recent::Recent;
use crate::store::{
    CancelTask, Claim, DropTask, EndAttempts, Ending, ExtendAllLeases, PrepareRestore, PutContext, RecordAgent,
    RecordContextSent, RenewLeases, Request, RequestCheckpoint, RestoreSession, SetDraining,
};

mod admission;
mod pair;
mod sending;

use admission::{Admit, admit};
use pair::Pair;
use sending::{Steer, steer};

/// How an attempt's batch of events ends.
#[derive(Debug, Clone, Copy)]
enum Last {
    More,
    Commits,
    Checkpoints(CheckpointReason),
    Claims,
    Crashes,
    RunsOut,
    Decides(VerdictKind),
}

/// One step. Numbers are small, so that steps concern the same rows; those of jobs and attempts
/// refer to existing ones.
#[derive(Debug, Clone)]
enum Step {
    Create {
        task: u128,
        request: u128,
        sessions: usize,
        verify: bool,
        context: bool,
    },
    Cancel {
        task: u128,
        request: u128,
    },
    Start {
        job: usize,
        agent: u128,
        boot: u128,
        late: bool,
    },
    Append {
        attempt: usize,
        offset: i64,
        count: u64,
        last: Last,
        stranger: bool,
    },
    Renew {
        agent: u128,
        boot: u128,
        attempts: Vec<usize>,
    },
    EndOthers {
        agent: u128,
        boot: u128,
    },
    EndBoot {
        agent: u128,
        boot: u128,
    },
    EndThese {
        attempts: Vec<usize>,
        expired: bool,
    },
    Extend,
    Hello {
        agent: u128,
        boot: u128,
    },
    Drain {
        agent: u128,
        request: Option<u128>,
    },
    PutContext {
        request: u128,
    },
    SendContext {
        agent: u128,
    },
    Restore {
        task: u128,
        session: usize,
        checkpoint: u32,
        request: u128,
    },
    Ask {
        task: u128,
        session: usize,
        request: u128,
    },
    Drop {
        task: u128,
        request: Option<u128>,
    },
    Wait {
        millis: u64,
    },
    Admit(Admit),
    Steer(Steer),
}

fn step() -> impl Strategy<Value = Step> {
    let last = prop_oneof![
        3 => Just(Last::More),
        3 => Just(Last::Commits),
        3 => Just(Last::Checkpoints(CheckpointReason::FilesChanged)),
        1 => Just(Last::Checkpoints(CheckpointReason::BeforeRetry)),
        1 => Just(Last::Checkpoints(CheckpointReason::Baseline)),
        5 => Just(Last::Claims),
        2 => Just(Last::Crashes),
        1 => Just(Last::RunsOut),
        2 => Just(Last::Decides(VerdictKind::Passed)),
        1 => Just(Last::Decides(VerdictKind::Failed)),
        2 => Just(Last::Decides(VerdictKind::Errored)),
    ];
    let offset = prop_oneof![8 => Just(0i64), 1 => -3..0i64, 1 => 1..3i64];
    let rarely = || prop::bool::weighted(0.1);
    let attempts = || prop::collection::vec(0..20usize, 0..4);
    prop_oneof![
        4 => (1..7u128, 1..9u128, 1..4usize, any::<bool>(), rarely())
            .prop_map(|(task, request, sessions, verify, context)| Step::Create { task, request, sessions, verify, context }),
        1 => (1..7u128, 1..5u128).prop_map(|(task, request)| Step::Cancel { task, request }),
        8 => (0..20usize, 1..4u128, 1..3u128, rarely())
            .prop_map(|(job, agent, boot, late)| Step::Start { job, agent, boot, late }),
        10 => (0..20usize, offset, 0..4u64, last, rarely())
            .prop_map(|(attempt, offset, count, last, stranger)| Step::Append { attempt, offset, count, last, stranger }),
        1 => (1..4u128, 1..3u128, attempts())
            .prop_map(|(agent, boot, attempts)| Step::Renew { agent, boot, attempts }),
        1 => (1..4u128, 1..3u128).prop_map(|(agent, boot)| Step::EndOthers { agent, boot }),
        1 => (1..4u128, 1..3u128).prop_map(|(agent, boot)| Step::EndBoot { agent, boot }),
        1 => (attempts(), any::<bool>()).prop_map(|(attempts, expired)| Step::EndThese { attempts, expired }),
        1 => Just(Step::Extend),
        3 => (1..4u128, 1..3u128).prop_map(|(agent, boot)| Step::Hello { agent, boot }),
        1 => (1..4u128, prop::option::of(1..4u128)).prop_map(|(agent, request)| Step::Drain { agent, request }),
        1 => (1..4u128).prop_map(|request| Step::PutContext { request }),
        1 => (1..4u128).prop_map(|agent| Step::SendContext { agent }),
        1 => (1..7u128, 0..3usize, 1..4u32, 1..9u128)
            .prop_map(|(task, session, checkpoint, request)| Step::Restore { task, session, checkpoint, request }),
        1 => (1..7u128, 0..3usize, 1..9u128).prop_map(|(task, session, request)| Step::Ask { task, session, request }),
        1 => (1..7u128, prop::option::of(1..9u128)).prop_map(|(task, request)| Step::Drop { task, request }),
        1 => (1..100_000u64).prop_map(|millis| Step::Wait { millis }),
        4 => admit().prop_map(Step::Admit),
        4 => steer().prop_map(Step::Steer),
    ]
}

impl Pair {
    async fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Create {
                task,
                request: key,
                sessions,
                verify,
                context,
            } => {
                let mut command = create(task, spec(sessions, verify.then_some("true")), now);
                if verify {
                    command.spec.policy.priority = Priority::HIGH;
                }
                command.request = request(key);
                if task % 3 > 0 {
                    let tree = Path::new(if task % 3 == 1 { "/home" } else { "/linked" });
                    command.origin = Some(TaskOrigin::of("machine", Path::new("/home"), tree, None));
                }
                command.spec.policy.max_reworks = (!task.is_multiple_of(3)).then_some(u32::from(verify));
                command.spec.policy.course = match (verify, task % 4) {
                    (true, 1) => Course::Ladder,
                    (true, 2) => Course::FirstVerified(NonZeroU32::MIN),
                    _ => Course::Race,
                };
                command.baseline = verify.then(|| JobId::from_random(task * 1000 + 500));
                if context {
                    command.spec.context_base = Some(Digest::of(b"context"));
                    command.spec.assignments[0].context_delta = Some("{}".to_owned());
                }
                command.request.payload = Digest::of(format!("{task} {:?}", command.spec).as_bytes());
                self.apply(command).await;
            }
            Step::Cancel { task, request: key } => {
                let mut command = CancelTask {
                    request: request(key),
                    task: task_id(task),
                    now,
                };
                command.request.payload = Digest::of(&task.to_be_bytes());
                self.apply(command).await;
            }
            Step::Start { job, agent, boot, late } => self.start(job, agent, boot, late).await,
            Step::Append {
                attempt,
                offset,
                count,
                last,
                stranger,
            } => {
                let attempt = self.attempt(attempt);
                self.append(attempt, offset, count, last, stranger).await;
            }
            Step::Renew { agent, boot, attempts } => {
                let claim = |n| {
                    let attempt = attempt_id(self.attempt(n));
                    Claim {
                        attempt,
                        token_hash: token(attempt),
                    }
                };
                let command = RenewLeases {
                    agent: agent_id(agent),
                    boot: boot_id(boot),
                    claims: attempts.into_iter().map(claim).collect(),
                    lease_until: now + Duration::from_secs(30),
                    now,
                };
                self.apply(command).await;
            }
            Step::EndOthers { agent, boot } => {
                let which = Ending::OtherBoots {
                    agent: agent_id(agent),
                    boot: boot_id(boot),
                };
                self.end(which, EndReason::AgentRestarted).await;
            }
            Step::EndBoot { agent, boot } => {
                let which = Ending::Boot {
                    agent: agent_id(agent),
                    boot: boot_id(boot),
                };
                self.end(which, EndReason::AgentGone).await;
            }
            Step::EndThese { attempts, expired } => {
                let ids = attempts.into_iter().map(|n| attempt_id(self.attempt(n))).collect();
                let which = if expired {
                    Ending::Expired(ids)
                } else {
                    Ending::These(ids)
                };
                self.end(which, EndReason::AgentSilent).await;
            }
            Step::Extend => {
                let lease_until = now + Duration::from_secs(60);
                self.apply(ExtendAllLeases { lease_until, now }).await;
            }
            Step::Hello { agent: id, boot } => {
                let mut hello = agent(id, boot);
                hello.seen_at = now;
                self.apply(RecordAgent { agent: hello }).await;
            }
            Step::Drain { agent, request: key } => {
                let command = SetDraining {
                    request: key.map(request),
                    agent: agent_id(agent),
                    draining: true,
                    now,
                };
                self.apply(command).await;
            }
            Step::PutContext { request: key } => {
                let command = PutContext {
                    request: request(key),
                    project: ProjectId::default(),
                    digest: Digest::of(b"context"),
                    size: 7,
                    now,
                };
                self.apply(command).await;
            }
            Step::SendContext { agent } => {
                let command = RecordContextSent {
                    project: ProjectId::default(),
                    digest: Digest::of(b"context"),
                    agent: agent_id(agent),
                    bytes: 7,
                };
                self.apply(command).await;
            }
            Step::Admit(step) => self.admit(step).await,
            Step::Steer(step) => self.steer(step).await,
            Step::Restore {
                task,
                session,
                checkpoint,
                request: key,
            } => {
                let Some(session) = self.session(task, session).await else {
                    return;
                };
                self.next_job += 1;
                let mut command = RestoreSession {
                    request: request(key),
                    task: task_id(task),
                    session,
                    checkpoint,
                    complete: checkpoint.is_multiple_of(2),
                    next_job: kage_core::id::JobId::from_random((1 << 100) + self.next_job),
                    now,
                };
                command.request.payload = Digest::of(format!("{task} {session} {checkpoint}").as_bytes());
                let prepare = PrepareRestore {
                    request: command.request.clone(),
                    task: command.task,
                    session: command.session,
                    now,
                };
                self.apply(prepare).await;
                if self.apply(command).await.is_some() {
                    self.seen.reopened(task_id(task));
                }
            }
            Step::Ask {
                task,
                session,
                request: key,
            } => {
                let Some(session) = self.session(task, session).await else {
                    return;
                };
                let command = RequestCheckpoint {
                    request: request(key),
                    task: task_id(task),
                    session,
                    now,
                };
                self.apply(command).await;
            }
            Step::Drop { task, request: key } => {
                let command = DropTask {
                    request: key.map(|key| Request {
                        payload: Digest::of(&task.to_be_bytes()),
                        ..request(key)
                    }),
                    task: task_id(task),
                    now,
                };
                if self.apply(command).await.is_some() {
                    self.seen.dropped(task_id(task));
                    self.jobs.retain(|job| job.task != task_id(task));
                }
            }
            Step::Wait { millis } => self.now = now + Duration::from_millis(millis),
        }
    }

    async fn start(&mut self, job: usize, agent: u128, boot: u128, late: bool) {
        let Some(job) = self.jobs.get(job % self.jobs.len().max(1)).cloned() else {
            return;
        };
        let work = self.sqlite.work(job.task, job.job).await.unwrap().unwrap();
        let number = work.number - u32::from(late);
        self.attempts += 1;
        let mut command = start(&job, self.attempts, number, agent, self.now);
        command.boot = boot_id(boot);
        // An attempt that was never started is written to as well.
        self.apply(command).await;
    }

    async fn append(&mut self, attempt: u128, offset: i64, count: u64, last: Last, stranger: bool) {
        let view = self.sqlite.attempt(attempt_id(attempt)).await.unwrap();
        let (acked, agent) = view.map_or((0, 1), |view| (view.attempt.acked_seq, view.attempt.agent.as_bits()));
        let first = (acked + 1).saturating_add_signed(offset);
        let mut events: Vec<Event> = (first..first + count).map(activity).collect();
        let end = first + count;
        match last {
            Last::More => {}
            Last::Commits => events.push(committed(end)),
            Last::Checkpoints(reason) => {
                let number = u32::try_from(end % 5).unwrap();
                let parent = match number {
                    0 | 1 => spec(1, None).repository.map(|repository| repository.base).unwrap(),
                    // It may never have been stored.
                    number => format!("{:040x}", number / 2).parse().unwrap(),
                };
                events.push(event(end, EventBody::CheckpointTaken(taken(number, &parent, reason))));
            }
            Last::Claims => events.extend([committed(end), claimed(end + 1)]),
            Last::Crashes => events.push(crashed(end)),
            Last::RunsOut => events.push(exhausted(end)),
            Last::Decides(kind) => events.push(verdict(end, kind)),
        }
        let mut command = append(attempt, agent + u128::from(stranger), events);
        self.next_job += 1;
        command.next_job = kage_core::id::JobId::from_random((1 << 100) + self.next_job);
        command.now = self.now;
        self.apply(command).await;
    }

    async fn end(&mut self, which: Ending, reason: EndReason) {
        let command = EndAttempts {
            which,
            reason,
            now: self.now,
        };
        self.apply(command).await;
    }
}

/// Fewer cases than usual, because every step of each waits for the disk. The long tier
/// asks for more through `PROPTEST_CASES`.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(40),
        max_shrink_iters: 400,
        ..ProptestConfig::default()
    }
}

impl Pair {
    async fn take(&mut self, steps: Vec<Step>) {
        for boot in 1..=3 {
            self.step(Step::Hello { agent: boot, boot: 1 }).await;
        }
        for step in steps {
            self.step(step).await;
            self.compare().await;
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn engines_agree_on_every_outcome_and_answer(steps in prop::collection::vec(step(), 1..60), forgets: bool) {
        let on_sqlite = if forgets { forgetful() } else { sqlite() };
        run(Pair::new(on_sqlite.store.clone(), None).take(steps));
    }

    #[test]
    fn engines_agree_when_one_of_them_fails_again_and_again(
        steps in prop::collection::vec(step(), 1..60),
        mut faults in prop::collection::vec(fault(), 1..40),
        forgets: bool,
    ) {
        // Whoever repeats a call gets through in the end.
        faults.push(Fault::None);
        let faulty = Faulty::open(faults, if forgets { Recent::nothing } else { Recent::new });
        run(Pair::new(faulty.store.clone(), Some(Arc::clone(&faulty.plan))).take(steps));
    }
}
