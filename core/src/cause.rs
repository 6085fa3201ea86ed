//! The causes of an error, in one line. Errors print themselves without their source, so that
//! nothing is repeated; where people read one, this prints the whole chain.

use std::error::Error;
use std::iter;

/// The error, then its source, then the source's source.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// The error with all its causes, in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let texts: Vec<_> = causes(error).map(ToString::to_string).collect();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the port cannot be read")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn the_first_is_what_failed_and_the_last_is_why() {
        let why = "x".parse::<u16>().unwrap_err();
        assert_eq!(
            chain(&Outer(why.clone())),
            "the port cannot be read: invalid digit found in string"
        );
        assert_eq!(
            causes(&Outer(why.clone())).last().map(ToString::to_string),
            Some(why.to_string())
        );
    }
}
