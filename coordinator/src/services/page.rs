//! Pages of lists that are read completely. A page is bounded, and a client that continues from a
//! page gets nothing twice and misses nothing, although the list may change between pages.

use std::fmt;
use std::str::FromStr;

use kage_core::id::{AgentId, ProjectId, RepositoryName, TokenId};
use kage_core::time::Timestamp;
use kage_proto::status::ApiError;

const SIZE: u32 = 100;
const MAX_SIZE: u32 = 500;

/// The place of an item in a list. Its text is the page token.
pub(super) trait Place: Ord + fmt::Display + FromStr<Err = NoPlace> {}

/// Why a text is no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a page token of this list")]
pub(super) struct NoPlace;

/// An agent's place: by name, which is not unique, and id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OfAgent(pub(super) String, pub(super) AgentId);

/// Of a person's token: the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OfToken(pub(super) Timestamp, pub(super) TokenId);

/// Of a checkpoint: by the position of its session in the task, then by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OfCheckpoint(pub(super) usize, pub(super) u32);

/// Of something that its name is unique to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OfName(pub(super) String);

/// Of a group by its key, which may be any text, an empty one too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OfKey(pub(super) String);

impl Place for OfName {}
impl Place for OfKey {}
impl Place for OfCheckpoint {}
impl Place for OfAgent {}
impl Place for OfToken {}

/// Cuts a page out of a list, and returns the token of the next one; empty if there is none.
///
/// # Errors
/// When the token is not from the end of a page.
pub(super) fn page<T, P: Place>(
    list: Vec<T>,
    place: impl Fn(&T) -> P,
    size: u32,
    token: &str,
) -> Result<(Vec<T>, String), ApiError> {
    let invalid = |error: NoPlace| ApiError::invalid("page_token", error);
    let after = match token {
        "" => None,
        text => Some(text.parse::<P>().map_err(invalid)?),
    };
    let size = match size {
        0 => SIZE,
        size => size.min(MAX_SIZE),
    };
    let mut placed: Vec<_> = list.into_iter().map(|thing| (place(&thing), thing)).collect();
    placed.retain(|(place, _)| after.as_ref().is_none_or(|after| place > after));
    placed.sort_by(|(a, _), (b, _)| a.cmp(b));
    let more = placed.len() > size as usize;
    placed.truncate(size as usize);
    let next = placed.last().filter(|_| more).map(|(place, _)| place.to_string());
    Ok((
        placed.into_iter().map(|(_, thing)| thing).collect(),
        next.unwrap_or_default(),
    ))
}

impl fmt::Display for OfAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.1, self.0)
    }
}

impl FromStr for OfAgent {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (id, name) = text.split_once('-').ok_or(NoPlace)?;
        Ok(Self(name.to_owned(), id.parse().map_err(|_| NoPlace)?))
    }
}

impl fmt::Display for OfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for OfName {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let name = text.parse::<ProjectId>().map(|name| name.to_string());
        let name = name.or_else(|_| text.parse::<RepositoryName>().map(|name| name.to_string()));
        name.map(Self).map_err(|_| NoPlace)
    }
}

impl fmt::Display for OfKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "={}", self.0)
    }
}

impl FromStr for OfKey {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let key = text.strip_prefix('=').ok_or(NoPlace)?;
        Ok(Self(key.to_owned()))
    }
}

impl fmt::Display for OfCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

impl FromStr for OfCheckpoint {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (session, number) = text.split_once('-').ok_or(NoPlace)?;
        Ok(Self(
            session.parse().map_err(|_| NoPlace)?,
            number.parse().map_err(|_| NoPlace)?,
        ))
    }
}

impl fmt::Display for OfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.1, self.0.as_millis())
    }
}

impl FromStr for OfToken {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (id, at) = text.split_once('-').ok_or(NoPlace)?;
        let at = at.parse().map_err(|_| NoPlace)?;
        Ok(Self(Timestamp::from_millis(at), id.parse().map_err(|_| NoPlace)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: u128, name: &str) -> OfAgent {
        OfAgent(name.to_owned(), AgentId::from_random(n))
    }

    /// Everything, page by page; between two pages the list may change.
    fn all(mut list: Vec<OfAgent>, size: u32, between: impl Fn(&mut Vec<OfAgent>)) -> Vec<OfAgent> {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (page, next) = page(list.clone(), OfAgent::clone, size, &token).unwrap();
            assert!(page.len() <= size as usize);
            seen.extend(page);
            if next.is_empty() {
                return seen;
            }
            token = next;
            between(&mut list);
        }
    }

    #[test]
    fn pages_in_turn_are_the_list() {
        let list = vec![
            agent(3, "b"),
            agent(1, "b"),
            agent(2, "a-b"),
            agent(4, "ü"),
            agent(5, ""),
        ];
        let mut sorted = list.clone();
        sorted.sort();
        for size in 1..7 {
            assert_eq!(all(list.clone(), size, |_| {}), sorted, "pages of {size}");
        }
        assert_eq!(all(Vec::new(), 1, |_| {}), []);
        // Removed and new items neither repeat nor hide others.
        let without_two = all(list.clone(), 2, |list| {
            list.retain(|place| place.1 != AgentId::from_random(2))
        });
        assert_eq!(without_two, sorted);
        let mut more = list;
        more.push(agent(9, "üz"));
        assert_eq!(all(more, 2, |list| list.insert(0, agent(8, "")))[5..], [agent(9, "üz")]);
    }

    #[test]
    fn groups_of_any_key_are_paged() {
        let keys = ["", "2026-01-31", "claude opus/5", "token:1", "=", "ü"].map(|key| OfKey(key.to_owned()));
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (page, next) = page(keys.to_vec(), OfKey::clone, 1, &token).unwrap();
            seen.extend(page);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen.len(), keys.len());
        assert_eq!("no key".parse::<OfKey>(), Err(NoPlace));
    }

    #[test]
    fn a_page_is_bounded_and_goes_on_only_from_a_place() {
        let many: Vec<_> = (1..1000).map(|n| agent(n, "x")).collect();
        for (asked, given) in [(0, SIZE), (1, 1), (400, 400), (u32::MAX, MAX_SIZE)] {
            let (page, _) = page(many.clone(), OfAgent::clone, asked, "").unwrap();
            assert_eq!(page.len(), given as usize);
        }
        let token = OfToken(Timestamp::from_millis(1_700_000_000_000_007), TokenId::from_random(7));
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_eq!(OfCheckpoint(3, 70).to_string().parse(), Ok(OfCheckpoint(3, 70)));
        assert_eq!("3-".parse::<OfCheckpoint>(), Err(NoPlace));
        assert_eq!("my_repo-1.2".parse(), Ok(OfName("my_repo-1.2".to_owned())));
        assert_eq!("No Such".parse::<OfName>(), Err(NoPlace));
        let soon = format!("{}-soon", TokenId::from_random(7));
        for text in ["x", "-", "1-x", &soon] {
            assert_eq!(text.parse::<OfToken>(), Err(NoPlace), "{text:?}");
        }
        let error = page(many, OfAgent::clone, 1, "1-x").unwrap_err();
        assert_eq!(error.reason(), "INVALID_ARGUMENT");
    }
}
