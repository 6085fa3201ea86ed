//! Whether a commit that an agent sent is a result of its session. What the agent says of the commit is a
//! claim; what is decided on here was read from the objects by whoever takes the result. Reading them is
//! not done here.

use crate::id::Oid;

/// A commit, as its objects have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentCommit {
    /// Its id.
    pub commit: Oid,
    /// Its tree.
    pub tree: Oid,
    /// Its parents, in their order.
    pub parents: Vec<Oid>,
}

/// Why a commit is no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAResult {
    /// Nothing was done on it.
    #[error("it is the base of the task")]
    Base,
    /// It has another history than the task.
    #[error("it does not stand on the task's base {base}: {}", told(.parents))]
    OtherParents {
        /// The base of the task.
        base: Oid,
        /// The parents that it has.
        parents: Vec<Oid>,
    },
    /// It has the base's files, so that a verdict on it would be the base's.
    #[error("it changes nothing")]
    NoChange,
    /// The agent said that it has other files.
    #[error("its tree is {found}, and not {said} as its agent said")]
    OtherTree {
        /// The tree that the agent named.
        said: Oid,
        /// The tree that it has.
        found: Oid,
    },
}

fn told(parents: &[Oid]) -> String {
    match parents {
        [] => "it has no parent".to_owned(),
        [parent] => format!("its parent is {parent}"),
        more => format!("it has {} parents", more.len()),
    }
}

/// Checks that a commit is one change of the base's files, right on the base. `base_tree` is the tree of
/// the base, and `said` the one that the agent names for the commit; earlier agents named none.
///
/// # Errors
/// Says what else it is.
pub fn check(sent: &SentCommit, base: &Oid, base_tree: &Oid, said: Option<&Oid>) -> Result<(), NotAResult> {
    if sent.commit == *base {
        return Err(NotAResult::Base);
    }
    if sent.parents != std::slice::from_ref(base) {
        return Err(NotAResult::OtherParents {
            base: base.clone(),
            parents: sent.parents.clone(),
        });
    }
    if let Some(said) = said.filter(|said| **said != sent.tree) {
        return Err(NotAResult::OtherTree {
            said: said.clone(),
            found: sent.tree.clone(),
        });
    }
    if sent.tree == *base_tree {
        return Err(NotAResult::NoChange);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> Oid {
        digit.repeat(40).parse().unwrap()
    }

    #[test]
    fn only_one_change_right_on_the_base_is_a_result() {
        let (base, base_tree, commit, tree) = (id("b"), id("0"), id("c"), id("1"));
        let sent = |commit: &Oid, tree: &Oid, parents: &[&Oid]| SentCommit {
            commit: commit.clone(),
            tree: tree.clone(),
            parents: parents.iter().map(|parent| (*parent).clone()).collect(),
        };
        let other = |parents: &[&Oid]| {
            Err(NotAResult::OtherParents {
                base: base.clone(),
                parents: parents.iter().map(|parent| (*parent).clone()).collect(),
            })
        };
        let (stranger, two) = (id("5"), id("2"));
        let swapped = Err(NotAResult::OtherTree {
            said: two.clone(),
            found: tree.clone(),
        });
        let cases = [
            (sent(&commit, &tree, &[&base]), None, Ok(())),
            (sent(&commit, &tree, &[&base]), Some(&tree), Ok(())),
            (sent(&commit, &tree, &[&base]), Some(&two), swapped),
            (sent(&base, &base_tree, &[&stranger]), None, Err(NotAResult::Base)),
            // Also a base that is its own parent in somebody's words.
            (sent(&base, &base_tree, &[&base]), None, Err(NotAResult::Base)),
            (sent(&commit, &tree, &[]), None, other(&[])),
            (sent(&commit, &tree, &[&stranger]), None, other(&[&stranger])),
            (
                sent(&commit, &tree, &[&base, &stranger]),
                None,
                other(&[&base, &stranger]),
            ),
            (sent(&commit, &tree, &[&base, &base]), None, other(&[&base, &base])),
            (sent(&commit, &base_tree, &[&base]), None, Err(NotAResult::NoChange)),
        ];
        for (sent, said, expected) in cases {
            assert_eq!(check(&sent, &base, &base_tree, said), expected, "{sent:?} {said:?}");
        }
    }

    #[test]
    fn it_is_said_what_it_is_instead() {
        let words = |parents: Vec<Oid>| NotAResult::OtherParents { base: id("b"), parents }.to_string();
        let start = format!("it does not stand on the task's base {}: ", id("b"));
        assert_eq!(words(Vec::new()), format!("{start}it has no parent"));
        assert_eq!(words(vec![id("5")]), format!("{start}its parent is {}", id("5")));
        assert_eq!(words(vec![id("b"), id("5")]), format!("{start}it has 2 parents"));
    }
}
