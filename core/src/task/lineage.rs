//! The lineage of a repository: what makes two clones one repository, so that the coordinator and
//! the agents keep its objects once and a second clone sends only what they lack. Never a path: a
//! clone, a linked working tree and the clone of a team mate have one lineage.
//!
//! ```text
//!   a whole history                -> its root: the first commit along first parents
//!   a cut-off or no history        -> the URL of a remote, without credentials and scheme
//!   no remote on a network either  -> an id that the repository keeps in its own git folder
//! ```
//! The object format is part of all three: an object id's length tells it, a remote has one, and
//! an id is kept by one repository. The project is part of where objects are kept.

use std::fmt;

use crate::id::{Digest, Oid, RepositoryName};

/// The lineage of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lineage {
    /// The history along first parents begins with this commit.
    Root(Oid),
    /// The history is cut off or has not begun, and comes from here.
    Remote(RemoteUrl),
    /// Nothing but this id, which was drawn at random, tells the repository from others.
    Kept(LineageId),
}

/// The host and the path of a remote: `example.org/team/project`, however it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteUrl(String);

/// 128 random bits, which a repository without history and remote keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineageId(u128);

/// How many digits of the digest are in a name: enough that nobody finds a second repository for
/// them by accident, few enough that people can read the name.
const DIGITS: usize = 16;
/// How many letters of a folder's name are in a name.
const MAX_FOLDER: usize = 80;

impl Lineage {
    /// A name for the repository on the coordinator, made readable by the name of a folder. The
    /// first clone that is sent names the repository; [`Lineage::is_of`] finds it again.
    #[must_use]
    pub fn name(&self, folder: &str) -> RepositoryName {
        let plain: String = folder
            .trim_end_matches(".git")
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(MAX_FOLDER)
            .collect();
        let plain = match plain.trim_matches('-') {
            "" => "repository",
            plain => plain,
        };
        let name = format!("{plain}-{}", self.digits());
        name.parse().expect("letters, digits and '-', a letter or digit first")
    }

    /// Whether a repository of that name is one of this lineage.
    #[must_use]
    pub fn is_of(&self, name: &RepositoryName) -> bool {
        name.as_str()
            .rsplit_once('-')
            .is_some_and(|(_, digits)| digits == self.digits())
    }

    fn digits(&self) -> String {
        let text = match self {
            Self::Root(commit) => format!("kage lineage root {commit}"),
            Self::Remote(url) => format!("kage lineage remote {}", url.0),
            Self::Kept(id) => format!("kage lineage id {id}"),
        };
        let mut digits = String::from(Digest::of(text.as_bytes()));
        digits.truncate(DIGITS);
        digits
    }
}

impl LineageId {
    /// Wraps 128 bits that the caller drew at random.
    #[must_use]
    pub fn from_random(bits: u128) -> Self {
        Self(bits)
    }

    /// Reads what [`fmt::Display`] wrote; `None` when it is something else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let id = Self(u128::from_str_radix(text, 16).ok()?);
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl RemoteUrl {
    /// Reads a remote's URL as git does. `None` for a path and for a helper's own form: neither
    /// means the same on another machine.
    #[must_use]
    pub fn from_git(url: &str) -> Option<Self> {
        let (authority, path) = match url.split_once("://") {
            Some(("file", _)) => return None,
            Some((scheme, rest)) => {
                // Tokens may be in a query.
                let rest = rest.split(['?', '#']).next().unwrap_or_default();
                let (authority, path) = rest.split_once('/')?;
                (without_usual_port(scheme, authority), path)
            }
            // `host:path`, unless the colon is in a path; `helper::address` is no address of git's.
            None => {
                let (authority, path) = url.split_once(':')?;
                if authority.contains('/') || path.starts_with(':') {
                    return None;
                }
                (authority, path)
            }
        };
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let path = path.trim_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path).trim_end_matches('/');
        let given = !host.is_empty() && !path.is_empty();
        given.then(|| Self(format!("{}/{path}", host.to_lowercase())))
    }
}

fn without_usual_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        "ssh" | "git+ssh" | "ssh+git" => ":22",
        "git" => ":9418",
        _ => return authority,
    };
    authority.strip_suffix(port).unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(url: &str) -> Option<String> {
        RemoteUrl::from_git(url).map(|url| url.0)
    }

    #[test]
    fn a_remote_is_the_same_however_it_is_reached_and_without_credentials() {
        for url in [
            "https://example.org/team/project.git",
            "https://example.org/team/project",
            "https://Example.org:443/team/project/",
            "https://bob:hunter2@example.org/team/project.git",
            "https://example.org/team/project.git?private_token=hunter2#x",
            "ssh://git@example.org/team/project.git",
            "ssh://git@example.org:22/team/project.git",
            "git@example.org:team/project.git",
            "example.org:team/project.git/",
            "git://example.org:9418/team/project",
        ] {
            assert_eq!(remote(url).as_deref(), Some("example.org/team/project"), "{url}");
        }
        assert_eq!(
            remote("ssh://git@example.org:2222/p").as_deref(),
            Some("example.org:2222/p")
        );
        assert_ne!(
            remote("https://example.org/team/Project"),
            remote("https://example.org/team/project")
        );
    }

    #[test]
    fn a_path_is_no_remote() {
        for url in [
            "",
            "/home/bob/project",
            "../project",
            "project.git",
            "./a:b/project",
            "file:///home/bob/project",
            "ext::sh -c something",
            "https://example.org",
            "https://example.org/",
            "https:///team/project",
            ":project",
        ] {
            assert_eq!(remote(url), None, "{url}");
        }
    }

    fn lineages() -> Vec<Lineage> {
        let url = |text| RemoteUrl::from_git(text).unwrap();
        vec![
            Lineage::Root("a".repeat(40).parse().unwrap()),
            Lineage::Root("b".repeat(40).parse().unwrap()),
            Lineage::Root("a".repeat(64).parse().unwrap()),
            Lineage::Remote(url("https://example.org/a")),
            Lineage::Remote(url("https://example.org/b")),
            Lineage::Kept(LineageId::from_random(1)),
            Lineage::Kept(LineageId::from_random(2)),
        ]
    }

    #[test]
    fn every_folder_makes_a_name_that_its_lineage_and_no_other_knows() {
        for (n, one) in lineages().iter().enumerate() {
            for folder in ["My Project", "kept.git", "ü", "", "-", "a-b", &"x".repeat(300)] {
                let name = one.name(folder);
                for (m, other) in lineages().iter().enumerate() {
                    assert_eq!(other.is_of(&name), n == m, "{other:?} {name}");
                }
            }
        }
        let one = lineages().remove(0);
        for (folder, starts) in [
            ("My Project", "my-project-"),
            ("kept.git", "kept-"),
            ("ü", "repository-"),
            ("", "repository-"),
        ] {
            assert!(one.name(folder).as_str().starts_with(starts), "{folder}");
        }
        assert!(!one.is_of(&"project".parse().unwrap()));
        assert!(!one.is_of(&"project-01234567".parse().unwrap()));
    }

    #[test]
    fn a_kept_id_is_read_as_it_was_written_and_nothing_else_is() {
        let id = LineageId::from_random(0xabc);
        assert_eq!(LineageId::from_text(&id.to_string()), Some(id));
        for text in [
            "",
            "abc",
            "+0000000000000000000000000000abc",
            &"A".repeat(32),
            &"0".repeat(33),
        ] {
            assert_eq!(LineageId::from_text(text), None, "{text}");
        }
    }
}
