//! What the model of a session's next attempt is told besides its task: what people said since, and
//! that verify failed, with its own result or that of the session before it on a ladder.

use super::Session;
use super::message::{MessageState, SessionMessage};
use crate::checkpoint::{Checkpoint, talked_since};

const EARLIER: &str = "# Earlier instructions\n\nThese came after the task, in this order. What was done so far \
                       follows them.\n\n";
const NEXT: &str = "# Next instruction\n\n";
const NEXT_ONES: &str = "# Next instructions\n\n";

/// What a model is told besides the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// The next message of a conversation that continues.
    pub text: String,
    /// True when that conversation has it already.
    pub known: bool,
    /// What a new conversation is told instead; empty: the same.
    pub anew: String,
}

impl Instruction {
    /// What a new conversation is told.
    #[must_use]
    pub fn for_new_conversation(&self) -> &str {
        if self.anew.is_empty() { &self.text } else { &self.anew }
    }
}

impl Session {
    /// The instruction for its model; `None` when it is only to continue. `all` are the session's
    /// checkpoints, and `command` is the verify command.
    #[must_use]
    pub fn instruction(&self, all: &[Checkpoint], command: &str) -> Option<Instruction> {
        let head = self.checkpoints.head.as_ref();
        let known = |from| head.is_some_and(|head| talked_since(head, from, all, &self.adapter));
        let rework = self.rework.as_ref().filter(|_| head.is_some());
        let failed = rework.map(|rework| (rework.instruction(command), known(rework.from)));
        let followed = |message: &&SessionMessage| matches!(message.state, MessageState::Followed { .. });
        let messages = &self.messages.kept;
        let earlier: Vec<_> = messages.iter().filter(followed).collect();
        let open: Vec<_> = messages.iter().filter(|message| message.is_open()).collect();
        let unheard = |message: &&&SessionMessage| match message.state {
            MessageState::Given { from, .. } => !known(from),
            // No checkpoint has the conversation of one that was told.
            MessageState::Waiting
            | MessageState::Told { .. }
            | MessageState::Followed { .. }
            | MessageState::TakenBack => true,
        };
        let news: Vec<_> = open.iter().filter(unheard).copied().collect();

        let unknown = failed
            .as_ref()
            .filter(|(_, known)| !known)
            .map(|(text, _)| text.clone());
        let next = joined([unknown, next_of(&news)]);
        let climbed = self.climbed.as_ref().map(|climbed| climbed.instruction(command));
        let anew = joined([
            climbed,
            words(EARLIER, &earlier),
            failed.map(|(text, _)| text),
            next_of(&open),
        ]);
        if anew.is_empty() {
            return None;
        }
        Some(match next.is_empty() {
            true => Instruction {
                text: anew,
                known: true,
                anew: String::new(),
            },
            false => Instruction {
                anew: if anew == next { String::new() } else { anew },
                text: next,
                known: false,
            },
        })
    }
}

/// What the model of a running session is told of a message.
#[must_use]
pub fn instruction_while_working(text: &str) -> String {
    format!("{NEXT}{}", text.trim_end())
}

/// Messages as the next instruction.
fn next_of(messages: &[&SessionMessage]) -> Option<String> {
    words(if messages.len() > 1 { NEXT_ONES } else { NEXT }, messages)
}

/// Messages below a heading, as they were sent.
fn words(heading: &str, messages: &[&SessionMessage]) -> Option<String> {
    let texts: Vec<_> = messages.iter().map(|message| message.text.trim_end()).collect();
    (!texts.is_empty()).then(|| format!("{heading}{}", texts.join("\n\n")))
}

fn joined<const N: usize>(parts: [Option<String>; N]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{CheckpointReason, Head, Safety, TakenCheckpoint, TranscriptSegment};
    use crate::id::{Digest, SessionId, TaskId};
    use crate::time::Timestamp;

    const NOW: Timestamp = Timestamp::from_millis(1);

    fn session() -> Session {
        Session::new(
            SessionId::from_random(1),
            TaskId::from_random(2),
            "one".parse().unwrap(),
            "adapter".parse().unwrap(),
            None,
        )
    }

    /// Checkpoint `number` after the one before, with a conversation that grew.
    fn talked(number: u32) -> Checkpoint {
        let commit = |n: u32| format!("{n:040x}").parse().unwrap();
        let end = u64::from(number);
        Checkpoint {
            session: SessionId::from_random(1),
            number,
            attempt: 1,
            adapter: "adapter".parse().unwrap(),
            agent: String::new(),
            taken: TakenCheckpoint {
                commit: commit(number),
                parent: commit(number - 1),
                tree: commit(number),
                reason: CheckpointReason::FilesChanged,
                note: String::new(),
                files_changed: 1,
                pack: None,
                transcript: Some(TranscriptSegment {
                    blob: Digest::of(b"said"),
                    from: end - 1,
                    to: end,
                }),
                calls: None,
                told: 0,
            },
            position: end,
            calls: 0,
            safety: Safety::Unknown,
            taken_at: NOW,
            stored_at: NOW,
        }
    }

    fn say(session: &mut Session, text: &str) {
        session.messages.add(text.to_owned(), "owner".to_owned(), NOW);
    }

    fn stand(session: &mut Session, all: &[Checkpoint]) {
        session.checkpoints.head = all.last().map(Head::of);
    }

    #[test]
    fn a_conversation_is_told_each_message_once_and_a_new_one_all_of_them() {
        let mut session = session();
        assert_eq!(session.instruction(&[], "true"), None);
        say(&mut session, "one\n");
        let told = session.instruction(&[], "true").unwrap();
        assert_eq!((told.text.as_str(), told.known), ("# Next instruction\n\none", false));
        assert_eq!(told.for_new_conversation(), told.text);

        // An attempt that was lost before it said anything: the next one is told again, in order.
        let mut all = vec![talked(1), talked(2)];
        stand(&mut session, &all);
        session.messages.give(2, 2);
        say(&mut session, "two");
        let told = session.instruction(&all, "true").unwrap();
        assert_eq!(told.text, "# Next instructions\n\none\n\ntwo");

        // One that had said something knows it.
        all.push(talked(3));
        stand(&mut session, &all);
        let told = session.instruction(&all, "true").unwrap();
        assert_eq!((told.text.as_str(), told.known), ("# Next instruction\n\ntwo", false));
        assert_eq!(told.for_new_conversation(), "# Next instructions\n\none\n\ntwo");
        session.messages.give(3, 3);
        all.push(talked(4));
        stand(&mut session, &all);
        let told = session.instruction(&all, "true").unwrap();
        assert!(told.known && told.text.ends_with("one\n\ntwo"), "{told:?}");

        // A result follows them: only a new conversation has to be told.
        session.messages.follow(4);
        say(&mut session, "three");
        let told = session.instruction(&all, "true").unwrap();
        assert_eq!(told.text, "# Next instruction\n\nthree");
        let anew = told.for_new_conversation();
        assert!(anew.starts_with("# Earlier instructions") && anew.ends_with("two\n\n# Next instruction\n\nthree"));
        // Another adapter begins a conversation of its own.
        session.adapter = "other".parse().unwrap();
        session.messages.give(4, 4);
        let told = session.instruction(&all, "true").unwrap();
        assert_eq!(told.text, "# Next instruction\n\nthree");
    }
}
