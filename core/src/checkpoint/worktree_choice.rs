//! The worktree in which an attempt resumes a checkpoint.

use crate::words::words;

words! {
    /// The worktree in which an attempt resumes a checkpoint. A preference: where the previous one is
    /// not available, a new one is made.
    #[derive(Default)]
    pub enum WorktreeChoice: "a choice of worktree" {
        /// A new one, with the files of the checkpoint and no others.
        #[default]
        New = "anew",
        /// The one of the attempt before: only files that differ are touched, and ignored ones stay.
        Previous = "left",
        /// The same, without ignored files that did not exist when the checkpoint was taken.
        PreviousCleaned = "left_complete",
    }
}

impl WorktreeChoice {
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
