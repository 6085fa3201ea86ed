//! The position of a session's conversation, and its growth since a checkpoint: the messages that
//! the adapter reports, or the lines of the file in which a program keeps its session.

use std::io::{self, Read as _, Seek as _, SeekFrom};

use crate::adapters::session_file::SessionFile;
use crate::adapters::steps::Steps;

/// The most of a session file that is read at once.
const LARGEST: u64 = 256 << 20;

#[derive(Debug, Clone)]
pub(super) enum Transcript {
    /// The adapter reports each message.
    Told,
    /// The program keeps the conversation in a file, one message a line.
    File(SessionFile),
}

/// A position in a conversation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Messages, or lines of the session file.
    pub(super) position: u64,
    /// Bytes of the session file; 0 without a file.
    pub(super) offset: u64,
}

/// The growth of a conversation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Gained {
    /// The position before it; 0 when the earlier conversation is gone.
    pub(super) from: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) to: Mark,
}

impl Transcript {
    /// The growth after `mark`. `position` is that of an adapter that reports its messages.
    pub(super) async fn since(&self, steps: &Steps, mark: Mark, position: u64) -> io::Result<Gained> {
        match self {
            Self::Told => Ok(Gained {
                from: mark.position,
                bytes: steps.lines(mark.position, position),
                to: Mark {
                    position: position.max(mark.position),
                    offset: 0,
                },
            }),
            Self::File(file) => {
                let file = file.clone();
                tokio::task::spawn_blocking(move || since(&file, mark))
                    .await
                    .map_err(io::Error::other)?
            }
        }
    }
}

fn since(session: &SessionFile, mark: Mark) -> io::Result<Gained> {
    let nothing = Gained {
        from: mark.position,
        bytes: Vec::new(),
        to: mark,
    };
    let Some(mut file) = session.place.open()? else {
        // The program has not started writing.
        return Ok(nothing);
    };
    let length = file.metadata()?.len();
    // A shorter file is another conversation.
    let Mark { position: from, offset } = if length < mark.offset { Mark::default() } else { mark };
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
        to: Mark {
            position: from + lines,
            offset: offset + whole as u64,
        },
        bytes: session.portable(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::session_file::FilePlace;
    use crate::adapters::session_file::beneath::Beneath;

    #[test]
    fn a_session_file_is_taken_by_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let session = SessionFile {
            place: FilePlace::At(Beneath::new(folder.path(), "s.jsonl")),
            names: vec![("/made/up".to_owned(), "{here}".to_owned())],
        };
        let mark = |position, offset| Mark { position, offset };
        assert_eq!(since(&session, mark(2, 4)).unwrap().to, mark(2, 4));
        std::fs::write(folder.path().join("s.jsonl"), "a\nb\n\"/made/up/x\"\nhalf").unwrap();
        let gained = since(&session, mark(2, 4)).unwrap();
        assert_eq!(gained.bytes, b"\"{here}/x\"\n");
        assert_eq!((gained.from, gained.to), (2, mark(3, 17)));
        // The program started a new conversation.
        let anew = since(&session, mark(2, 100)).unwrap();
        assert_eq!((anew.from, anew.to), (0, mark(3, 17)));
    }
}
