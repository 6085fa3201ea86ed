//! The limit of open files. Every connection is one, and systems give a program far fewer than it
//! may have, for the sake of old programs that keep file numbers in a bit set.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit that is asked for: four times the possible connections. Child processes inherit the
/// limit, and some close every possible number one by one.
const MOST: u64 = 65_536;

/// Raises the limit as far as is allowed and useful. Returns the limit; `None`: there is none.
pub(crate) fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(MOST, |maximum| maximum.min(MOST));
    if current.is_none_or(|current| current >= wanted) {
        return current;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_is_allowed_and_of_use() {
        let before = getrlimit(Resource::Nofile);
        let files = raise_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, now.maximum), (files, before.maximum));
        let of_use = before.maximum.map_or(MOST, |maximum| maximum.min(MOST));
        let expected = before.current.map(|current| current.max(of_use));
        assert_eq!(files, expected);
    }
}
