//! `SendMessage` and `ForkSession`: a person's words for a session, and sessions that go on from the
//! files of others.

use kage_core::fallback::{AdapterLacks, Fallback};
use kage_core::id::{AdapterName, JobId, SessionId};
use kage_core::session::{Answer, Session, Successor, checked_message, fork_name};
use kage_core::task::{Assignment, Labels, MAX_MODEL_BYTES, TaskSpec};
use kage_proto::convert::parse;
use kage_proto::convert::task::{TaskDetail, fallback};
use kage_proto::status::ApiError;
use kage_proto::v1;
use tokio::time::Instant;

use crate::board::Board;
use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::duties::telling;
use crate::refusals::{internal, store_error};
use crate::services::checkpoint::subject::{Subject, named};
use crate::services::{find_task, request, stored};
use crate::store::{AnswerQuestion, ForkSession, Request, SendMessage, StoreError, TaskView};
use crate::watch::view;

/// How often a fork looks again at a task to which others add sessions.
const LOOKS: usize = 8;

pub(super) async fn send(
    coordinator: &Coordinator,
    caller: &Principal,
    message: v1::SendMessageRequest,
) -> Result<v1::SendMessageResponse, ApiError> {
    let text = text("text", message.text)?;
    let task = find_task(coordinator, caller, &message.task_id).await?;
    let seen = stored(coordinator, task).await?;
    let session = named(&seen, &message.session)?;
    let (id, name) = (session.id, session.name.clone());
    check_base(coordinator, &seen.task.spec).await?;
    let command = SendMessage {
        request: request(coordinator, caller, &message.request_id, &(task, id, &text))?,
        task,
        session: id,
        text,
        next_job: JobId::from_random(coordinator.random()),
        now: coordinator.now(),
    };
    let number = coordinator.apply(command).await.map_err(store_error)?;
    let seen = stored(coordinator, task).await?;
    let live = match seen.sessions.iter().find(|session| session.id == id) {
        Some(session) => telling::hand_over(coordinator, session).await,
        None => false,
    };
    Ok(v1::SendMessageResponse {
        task: Some(view::task(coordinator, seen, TaskDetail::Basic)),
        session: name.to_string(),
        number,
        live,
    })
}

/// A person's answer to what the program of a running attempt asks.
pub(super) async fn answer(
    coordinator: &Coordinator,
    caller: &Principal,
    message: v1::AnswerQuestionRequest,
) -> Result<v1::AnswerQuestionResponse, ApiError> {
    let task = find_task(coordinator, caller, &message.task_id).await?;
    let seen = stored(coordinator, task).await?;
    let session = named(&seen, &message.session)?;
    let number = match message.number {
        0 => only_open(session)?,
        number => number,
    };
    let command = AnswerQuestion {
        task,
        session: session.id,
        number,
        answer: Answer {
            allow: message.allow,
            by: caller.name(),
        },
    };
    let session = coordinator.apply(command).await.map_err(store_error)?;
    telling::hand_over(coordinator, &session).await;
    let question = session.open_questions().iter().find(|open| open.number == number);
    let seen = stored(coordinator, task).await?;
    Ok(v1::AnswerQuestionResponse {
        question: question.map(Into::into),
        session: session.name.to_string(),
        task: Some(view::task(coordinator, seen, TaskDetail::Basic)),
    })
}

/// The one question of a session that has no answer.
fn only_open(session: &Session) -> Result<u32, ApiError> {
    let open = session.open_questions().iter().filter(|open| open.answer.is_none());
    let open: Vec<_> = open.map(|open| open.number).collect();
    let words = match open[..] {
        [number] => return Ok(number),
        [] => "nothing waits for an answer".to_owned(),
        [..] => {
            let numbers: Vec<_> = open.iter().map(u32::to_string).collect();
            format!("several questions wait: say which ({})", numbers.join(", "))
        }
    };
    Err(ApiError::FailedPrecondition {
        message: format!("session {}: {words}", session.name),
    })
}

pub(super) async fn fork(
    coordinator: &Coordinator,
    caller: &Principal,
    message: v1::ForkSessionRequest,
) -> Result<v1::ForkSessionResponse, ApiError> {
    let wish = Wish::of(&message)?;
    let task = find_task(coordinator, caller, &message.task_id).await?;
    let subject = Subject::of(coordinator, task, &message.session).await?;
    let checkpoint = match message.checkpoint.as_str() {
        "" => None,
        asked => Some(subject.checkpoint(asked)?.number),
    };
    check_base(coordinator, &subject.view.task.spec).await?;
    let payload = (task, subject.session.id, checkpoint, &message.adapter, &message.model);
    let payload = (payload, &wish.fallbacks, &message.text);
    let once = request(coordinator, caller, &message.request_id, &payload)?;
    let mut seen = subject.view;
    let mut looks = 0;
    let fork = loop {
        let command = wish.command(coordinator, once.clone(), &seen, (subject.session.id, checkpoint));
        match coordinator.apply(command).await {
            Err(StoreError::SessionsChanged { .. }) if looks < LOOKS => {
                looks += 1;
                seen = stored(coordinator, task).await?;
            }
            applied => break applied.map_err(store_error)?,
        }
    };
    let seen = stored(coordinator, task).await?;
    let found = seen.sessions.iter().find(|session| session.id == fork);
    let name = found.map_or_else(String::new, |session| session.name.to_string());
    Ok(v1::ForkSessionResponse {
        task: Some(view::task(coordinator, seen, TaskDetail::Basic)),
        session: name,
    })
}

/// What a fork is to be.
struct Wish {
    adapter: AdapterName,
    model: Option<String>,
    fallbacks: Vec<Fallback>,
    text: Option<String>,
    waits_for_agent: bool,
}

impl Wish {
    fn of(message: &v1::ForkSessionRequest) -> Result<Self, ApiError> {
        let fallbacks = message.fallbacks.iter().cloned().enumerate();
        let wish = Self {
            adapter: parse("adapter", &message.adapter)?,
            model: Some(message.model.clone()).filter(|model| !model.is_empty()),
            fallbacks: fallbacks
                .map(|(n, named)| fallback(&format!("fallbacks[{n}]"), named))
                .collect::<Result<_, _>>()?,
            text: match message.text.as_str() {
                "" => None,
                said => Some(text("text", said.to_owned())?),
            },
            waits_for_agent: message.wait_for_agent,
        };
        if wish.fallbacks.len() > kage_core::fallback::MAX_FALLBACKS {
            return Err(ApiError::invalid("fallbacks", "are more than 8"));
        }
        let models = wish.fallbacks.iter().filter_map(|fallback| fallback.model.as_ref());
        if models.chain(&wish.model).any(|model| model.len() > MAX_MODEL_BYTES) {
            let problem = format_args!("has more than {MAX_MODEL_BYTES} bytes");
            return Err(ApiError::invalid("model", problem));
        }
        Ok(wish)
    }

    fn command(
        &self,
        coordinator: &Coordinator,
        request: Request,
        seen: &TaskView,
        (session, checkpoint): (SessionId, Option<u32>),
    ) -> ForkSession {
        let spec = &seen.task.spec;
        let names: Vec<_> = seen.sessions.iter().map(|session| session.name.clone()).collect();
        let name = fork_name(&self.adapter, &names);
        let of = seen.sessions.iter().find(|other| other.id == session);
        let assignment = Assignment {
            name: name.clone(),
            adapter: self.adapter.clone(),
            model: self.model.clone(),
            context_delta: None,
            requirements: of.map_or_else(Labels::new, |of| of.requirements.clone()),
            fallbacks: self.fallbacks.clone(),
            timeout: of.and_then(|of| of.timeout),
        };
        let (lacks, lacks_verify) = {
            let board = coordinator.board();
            let verify = board.nobody_can_verify(spec, &assignment, Instant::now());
            (lacks(&board, spec, &assignment), verify)
        };
        ForkSession {
            task: seen.task.id,
            session,
            checkpoint,
            next: Successor {
                id: SessionId::from_random(coordinator.random()),
                name,
                adapter: self.adapter.clone(),
                model: self.model.clone(),
                fallbacks: self.fallbacks.clone(),
                by: request.principal.clone(),
            },
            text: self.text.clone(),
            beside: names.len(),
            lacks,
            lacks_verify,
            waits_for_agent: self.waits_for_agent,
            next_job: JobId::from_random(coordinator.random()),
            now: coordinator.now(),
            request,
        }
    }
}

fn text(field: &str, text: String) -> Result<String, ApiError> {
    checked_message(text).map_err(|invalid| ApiError::invalid(field, invalid))
}

/// What the known agents lack for a session, by adapter.
pub(super) fn lacks(board: &Board, spec: &TaskSpec, session: &Assignment) -> AdapterLacks {
    let now = Instant::now();
    let mut lacks = vec![board.nobody_can(spec, session, now)];
    for fallback in &session.fallbacks {
        if lacks.last().is_some_and(Option::is_none) {
            break;
        }
        let instead = Assignment {
            adapter: fallback.adapter.clone(),
            ..session.clone()
        };
        lacks.push(board.nobody_can(spec, &instead, now));
    }
    AdapterLacks(lacks)
}

/// Refuses to let a session go on whose base is gone.
async fn check_base(coordinator: &Coordinator, spec: &TaskSpec) -> Result<(), ApiError> {
    let Some(repository) = &spec.repository else {
        return Ok(());
    };
    let (name, base) = (&repository.name, &repository.base);
    let present = coordinator.objects.has_commit(&spec.project, name, base).await;
    if present.map_err(|error| internal("the repository could not be read", &error))? {
        return Ok(());
    }
    Err(ApiError::FailedPrecondition {
        message: format!(
            "the base of the task, commit {base}, is not in repository {name} any more, so no session of it can go \
             on; push it as refs/kage/bases/{base}, or run the task again from the present files"
        ),
    })
}
