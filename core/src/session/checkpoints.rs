//! What a session keeps of its checkpoints, so that it need not be read with them: how many there
//! are, the one that it stands on, and the last that attempts resumed.

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Head, Resumption, TakenCheckpoint, WorktreeChoice};
use crate::id::Oid;

/// How many resumptions a session remembers.
pub const MAX_RESUMPTIONS: usize = 16;

/// The checkpoints of a session, in short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCheckpoints {
    /// Number of checkpoints taken; the last one has this number.
    pub taken: u32,
    /// The checkpoint that it stands on; `None`: the base.
    pub head: Option<Head>,
    /// Its last resumptions of checkpoints, oldest first.
    pub resumptions: Vec<Resumption>,
}

impl SessionCheckpoints {
    /// One more was taken: the session stands on it.
    pub(super) fn take(&mut self, taken: &TakenCheckpoint) {
        self.taken = self.taken.saturating_add(1);
        self.head = Some(Head {
            number: self.taken,
            commit: taken.commit.clone(),
            worktree: WorktreeChoice::New,
        });
    }

    /// An attempt resumed `commit` at a position in the conversation, and repeats so many calls. The
    /// number of the checkpoint; `None` when the session does not stand on that commit.
    pub(super) fn resume(&mut self, attempt: u32, commit: &Oid, (position, repeated_calls): (u64, u32)) -> Option<u32> {
        let head = self.head.as_ref().filter(|head| head.commit == *commit)?;
        let number = head.number;
        if self.resumptions.len() >= MAX_RESUMPTIONS {
            self.resumptions.remove(0);
        }
        self.resumptions.push(Resumption {
            attempt,
            number,
            commit: commit.clone(),
            position,
            repeated_calls,
        });
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_resumptions_of_where_it_stands_count_and_the_last_are_remembered() {
        let commit = |n: usize| format!("{n:040x}").parse::<Oid>().unwrap();
        let mut checkpoints = SessionCheckpoints::default();
        assert_eq!(checkpoints.resume(1, &commit(1), (0, 0)), None, "it stands on the base");
        checkpoints.head = Some(Head {
            number: 3,
            commit: commit(1),
            worktree: WorktreeChoice::New,
        });
        assert_eq!(checkpoints.resume(1, &commit(2), (0, 0)), None);
        for attempt in 2..20 {
            assert_eq!(checkpoints.resume(attempt, &commit(1), (4, 1)), Some(3));
        }
        let attempts: Vec<_> = checkpoints.resumptions.iter().map(|r| r.attempt).collect();
        assert_eq!(attempts, Vec::from_iter(4..20));
        let last = &checkpoints.resumptions[MAX_RESUMPTIONS - 1];
        assert_eq!((last.number, last.position, last.repeated_calls), (3, 4, 1));
    }
}
