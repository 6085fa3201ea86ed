//! The worktree in which an attempt resumes a checkpoint.

use serde::{Deserialize, Serialize};

/// The worktree in which an attempt resumes a checkpoint. A preference: where the previous one is
/// not available, a new one is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WorktreeChoice {
    /// A new one, with the files of the checkpoint and no others.
    #[default]
    #[serde(rename = "anew")]
    New,
    /// The one of the attempt before: only files that differ are touched, and ignored ones stay.
    #[serde(rename = "left")]
    Previous,
    /// The same, without ignored files that did not exist when the checkpoint was taken.
    #[serde(rename = "left_complete")]
    PreviousCleaned,
}

impl WorktreeChoice {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::New, Self::Previous, Self::PreviousCleaned];

    /// True for a new worktree.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        matches!(self, Self::New)
    }
}

#[cfg(test)]
mod tests {
    use super::WorktreeChoice;

    #[test]
    fn stored_names_stay_what_they_were() {
        let names = WorktreeChoice::ALL.map(|choice| serde_json::to_string(&choice).unwrap());
        assert_eq!(names, ["\"anew\"", "\"left\"", "\"left_complete\""]);
    }
}
