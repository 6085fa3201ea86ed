//! What people say to a running session, handed to the agent that runs it: messages that wait, and answers
//! to questions. The session's row has both until an event of the attempt tells of them, so they are handed
//! over again whenever the agent comes back; an agent takes each once, by its number.

use kage_core::id::{AgentId, AttemptId};
use kage_core::session::{Session, SessionState};
use kage_proto::v1;
use kage_proto::v1::connect_response::Message;

use crate::board::Board;
use crate::coordinator::Coordinator;

/// Hands over what waits for the running attempt of a session. True when its adapter hears messages and the
/// agent is connected; otherwise they wait for the next attempt, or for the agent.
pub(crate) async fn hand_over(coordinator: &Coordinator, session: &Session) -> bool {
    let SessionState::Running { attempt } = session.state else {
        return false;
    };
    match coordinator.store.attempt(attempt).await {
        Ok(Some(view)) => tell(&mut coordinator.board(), view.attempt.agent, attempt, session),
        Ok(None) => false,
        Err(error) => {
            tracing::warn!(%attempt, error = &error as &dyn std::error::Error, "what people said is handed over later");
            false
        }
    }
}

/// The same for attempts of an agent that has come back, or has begun them.
pub(crate) async fn hand_over_to(coordinator: &Coordinator, agent: AgentId, attempts: &[AttemptId]) {
    for attempt in attempts {
        let found = async {
            let Some(view) = coordinator.store.attempt(*attempt).await? else {
                return Ok(None);
            };
            let task = coordinator.store.task(view.attempt.task).await?;
            Ok::<_, crate::store::ReadError>(task.and_then(|task| {
                let mut sessions = task.sessions.into_iter();
                sessions.find(|session| session.id == view.attempt.session)
            }))
        };
        match found.await {
            Ok(Some(session)) if session.state == (SessionState::Running { attempt: *attempt }) => {
                tell(&mut coordinator.board(), agent, *attempt, &session);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%attempt, error = &error as &dyn std::error::Error, "what people said is handed over later");
            }
        }
    }
}

fn tell(board: &mut Board, agent: AgentId, attempt: AttemptId, session: &Session) -> bool {
    let hears = board.hears(agent, &session.adapter);
    let said = session.messages.waiting().filter(|_| hears).map(|message| {
        Message::Say(v1::Say {
            attempt_id: attempt.to_string(),
            number: message.number,
            text: message.text.clone(),
        })
    });
    let answered = session.open_questions().iter().filter_map(|question| {
        let answer = question.answer.as_ref()?;
        Some(Message::AnswerQuestion(v1::AnswerQuestion {
            attempt_id: attempt.to_string(),
            number: question.number,
            allow: answer.allow,
            answered_by: answer.by.clone(),
        }))
    });
    let mut connected = true;
    for message in answered.chain(said) {
        let message = v1::ConnectResponse { message: Some(message) };
        connected = connected && board.tell(agent, message);
    }
    hears && connected
}
