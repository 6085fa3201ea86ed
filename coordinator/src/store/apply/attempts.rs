//! Attempts: started, kept alive, and ended because their agent lost its authority.

use std::collections::BTreeSet;

use kage_core::attempt::{Attempt, AttemptState};
use kage_core::id::AttemptId;
use kage_core::job::JobKind;

use super::ending::End;
use super::{Command, job_of, session_of, task_of};
use crate::store::command::{EndAttempts, Ending, ExtendAllLeases, RenewLeases, Renewed, Start, StartAttempt};
use crate::store::error::EngineError;
use crate::store::rows::{AttemptNote, Failed, Rows};
use crate::store::unit::Key;

impl Command for StartAttempt {
    type Outcome = Start;

    fn reads(&self) -> Vec<Key> {
        vec![Key::Boot(self.agent), Key::Job(self.task, self.job)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Start, Failed> {
        // An older start of the agent may have accepted just before it died.
        if rows.agent_boot(self.agent)? != Some(self.boot) {
            return Ok(Start::NotStartable);
        }
        let Some(mut row) = rows.job(self.task, self.job)? else {
            return Ok(Start::NotStartable);
        };
        if row.job.started.checked_add(1) != Some(self.number) {
            return Ok(Start::NotStartable);
        }
        let dangling = EngineError::Dangling {
            job: self.job,
            what: "task",
        };
        let mut head = rows.task(self.task)?.ok_or(Failed::Engine(dangling))?;
        let mut session = session_of(rows, &head, &row.job)?;
        let before = session.state.kind();
        if row
            .job
            .start(self.attempt, &mut session, &self.agent_name, self.now)
            .is_err()
        {
            return Ok(Start::NotStartable);
        }
        let allowed = self.slack.allowed(&row.job.kind, &head.policy, session.timeout);
        if row.job.kind == JobKind::Session {
            session.resumes = self.resumes;
            session.works_in(self.contained);
        }
        let attempt = Attempt {
            id: self.attempt,
            job: self.job,
            session: session.id,
            task: self.task,
            number: row.job.started,
            token_hash: self.token_hash,
            agent: self.agent,
            boot: self.boot,
            contained: self.contained,
            lease_until: self.lease_until,
            ends_by: self.now + allowed,
            stop_asked: None,
            over_budget: None,
            heard_at: self.now,
            acked_seq: 0,
            state: AttemptState::Live,
        };
        let note = AttemptNote {
            agent_name: self.agent_name,
            job: row.job.type_of(),
            session_name: session.name.clone(),
            started_at: self.now,
            adapter: row.job.kind.is_of_adapter().then(|| session.adapter.clone()),
        };
        rows.insert_attempt(&attempt, &note)?;
        rows.save_job(&row)?;
        rows.save_session(&session)?;
        if head.session_moved(before, session.state.kind()) {
            rows.save_task(&head)?;
        }
        Ok(Start::Started)
    }
}

impl Command for RenewLeases {
    type Outcome = Renewed;

    fn reads(&self) -> Vec<Key> {
        let attempts = self.claims.iter().map(|claim| Key::Attempt(claim.attempt));
        attempts.collect()
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Renewed, Failed> {
        let mut outcome = Renewed::default();
        for claim in self.claims {
            let Some(mut attempt) = rows.attempt(claim.attempt)? else {
                outcome.refused.push(claim.attempt);
                continue;
            };
            let authorised = attempt.authorise(&claim.token_hash, self.agent).is_ok();
            if !authorised || attempt.boot != self.boot {
                outcome.refused.push(claim.attempt);
                continue;
            }
            let heard = attempt.hear(self.now);
            if heard || attempt.lease_until < self.lease_until {
                attempt.renew(self.lease_until, self.now);
                rows.save_attempt(&attempt)?;
            }
            outcome.renewed.push(claim.attempt);
        }
        rows.save_agent_seen(self.agent, self.now)?;
        Ok(outcome)
    }
}

impl Command for EndAttempts {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        vec![match &self.which {
            Ending::OtherBoots { agent, .. } | Ending::Boot { agent, .. } => Key::EndingOf(*agent),
            Ending::These(attempts) | Ending::Expired(attempts) => Key::Ending(attempts.clone()),
        }]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        let attempts = match &self.which {
            Ending::OtherBoots { agent, boot } => {
                let mut live = rows.live_attempts(*agent)?;
                live.retain(|attempt| attempt.boot != *boot);
                live
            }
            Ending::Boot { agent, boot } => {
                let mut live = rows.live_attempts(*agent)?;
                live.retain(|attempt| attempt.boot == *boot);
                live
            }
            Ending::These(ids) => load_attempts(rows, ids)?,
            Ending::Expired(ids) => {
                let mut expired = load_attempts(rows, ids)?;
                expired.retain(|attempt| attempt.lease_until <= self.now);
                expired
            }
        };
        for mut attempt in attempts {
            if !attempt.end(self.reason, self.now) {
                continue;
            }
            let mut head = task_of(rows, &attempt)?;
            let mut row = job_of(rows, &attempt)?;
            let mut session = session_of(rows, &head, &row.job)?;
            let before = session.state.kind();
            let ended = End {
                attempt: &mut attempt,
                row: &mut row,
                session: &mut session,
                before,
                head: &mut head,
            };
            ended.lose(rows, self.reason, self.now)?;
            rows.save_attempt(&attempt)?;
            rows.save_task(&head)?;
        }
        Ok(())
    }
}

impl Command for ExtendAllLeases {
    type Outcome = ();

    fn reads(&self) -> Vec<Key> {
        Vec::new()
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        rows.extend_leases(self.lease_until, self.now)
    }
}

fn load_attempts(rows: &mut dyn Rows, ids: &[AttemptId]) -> Result<Vec<Attempt>, Failed> {
    let mut attempts = Vec::with_capacity(ids.len());
    for id in BTreeSet::from_iter(ids) {
        attempts.extend(rows.attempt(*id)?);
    }
    Ok(attempts)
}
