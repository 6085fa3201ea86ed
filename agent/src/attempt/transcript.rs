//! Where a session's conversation is, and what it gained since a checkpoint: the messages
//! that the adapter tells, or the lines of the file in which a program keeps its session.

use std::io::{self, Read as _, Seek as _, SeekFrom};

use super::checkpoints::Place;
use crate::session_file::SessionFile;
use crate::steps::Steps;

/// More than this of a session file is not taken at once.
const LARGEST: u64 = 256 << 20;

/// A session's conversation.
#[derive(Debug, Clone)]
pub(super) enum Transcript {
    /// The adapter tells each message.
    Told,
    /// The program keeps it in a file, a line each.
    File(SessionFile),
}

/// What a conversation gained.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gained {
    /// The position before it; 0 when what was there before is gone.
    pub(super) from: u64,
    /// Whole lines.
    pub(super) bytes: Vec<u8>,
    /// The position after it.
    pub(super) position: u64,
    /// The place in the file after it.
    pub(super) offset: u64,
}

impl Transcript {
    /// What came after `place`. `position` is where an adapter that tells its messages is.
    pub(super) async fn since(&self, steps: &Steps, place: &Place, position: u64) -> io::Result<Gained> {
        match self {
            Self::Told => Ok(Gained {
                from: place.position,
                bytes: steps.lines(place.position, position),
                position: position.max(place.position),
                offset: 0,
            }),
            Self::File(file) => {
                let (file, place) = (file.clone(), place.clone());
                tokio::task::spawn_blocking(move || since(&file, &place))
                    .await
                    .map_err(io::Error::other)?
            }
        }
    }
}

fn since(session: &SessionFile, place: &Place) -> io::Result<Gained> {
    let nothing = Gained {
        from: place.position,
        bytes: Vec::new(),
        position: place.position,
        offset: place.offset,
    };
    let mut file = match std::fs::File::open(&session.path) {
        Ok(file) => file,
        // The program has not begun.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    // A shorter file is another conversation.
    let (from, offset) = if length < place.offset {
        (0, 0)
    } else {
        (place.position, place.offset)
    };
    if length - offset > LARGEST {
        let message = format!("the session file grew by {} bytes", length - offset);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(length - offset).read_to_end(&mut bytes)?;
    // The last line may be half written.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    bytes.truncate(whole);
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    Ok(Gained {
        from,
        position: from + lines,
        offset: offset + whole as u64,
        bytes: session.portable(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_file_is_taken_by_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let session = SessionFile {
            path: folder.path().join("s.jsonl"),
            names: vec![("/made/up".to_owned(), "{here}".to_owned())],
        };
        let mut place = Place {
            commit: "a".repeat(40).parse().unwrap(),
            position: 2,
            offset: 4,
        };
        assert_eq!(since(&session, &place).unwrap().position, 2);
        std::fs::write(&session.path, "a\nb\n\"/made/up/x\"\nhalf").unwrap();
        let gained = since(&session, &place).unwrap();
        assert_eq!(gained.bytes, b"\"{here}/x\"\n");
        assert_eq!((gained.from, gained.position, gained.offset), (2, 3, 17));
        // A program that began anew.
        place.offset = 100;
        let anew = since(&session, &place).unwrap();
        assert_eq!((anew.from, anew.position, anew.offset), (0, 3, 17));
    }
}
