//! The standard input of a program that is talked to while it runs. It is a named pipe: a warden opens it like
//! any file, so that a program that is talked to is started, boxed, frozen and ended like every other one.
//! What is written waits here while the program does not read; its owner bounds that.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BytesMut};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::net::unix::pipe;

use super::Stdin;

/// A way to write to a running program. Dropping it is the end of the program's input.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: pipe::Sender,
    /// Without a reader the pipe could not be opened for writing before the program is there; `None`: it is there.
    reader: Option<pipe::Receiver>,
    place: PathBuf,
    waiting: BytesMut,
}

impl Feed {
    /// Makes the pipe in a folder of the attempt's. Blocks for a moment.
    ///
    /// # Errors
    /// When the system refuses it.
    pub(crate) fn make(folder: &Path) -> io::Result<Self> {
        let place = folder.join(format!("stdin-{:016x}", rand::random::<u64>()));
        mkfifo(&place, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let opened = pipe::OpenOptions::new()
            .open_receiver(&place)
            .and_then(|reader| Ok((reader, pipe::OpenOptions::new().open_sender(&place)?)));
        match opened {
            Ok((reader, sender)) => Ok(Self {
                sender,
                reader: Some(reader),
                place,
                waiting: BytesMut::new(),
            }),
            Err(error) => {
                remove(&place);
                Err(error)
            }
        }
    }

    /// What the program is started with.
    pub(crate) fn stdin(&self) -> Stdin {
        Stdin::File(self.place.clone())
    }

    /// The program has read something, so it has the pipe open: from here on a write fails when it has closed it.
    /// Not before: a program in a box opens the pipe again by a path, and would miss what is written in between.
    pub(crate) fn was_read(&mut self) {
        drop(self.reader.take());
    }

    /// Adds bytes to what is written when the program reads.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// Bytes that the program has not taken.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Writes what waits, as far as the pipe has room; waits for room, and for ever when nothing waits.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When nobody can read it any more, which shows once it [was read](Self::was_read).
    pub(crate) async fn write(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        self.sender.writable().await?;
        match self.sender.try_write(&self.waiting) {
            Ok(written) => {
                self.waiting.advance(written);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        remove(&self.place);
    }
}

fn remove(place: &Path) {
    match std::fs::remove_file(place) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::debug!(%error, "a pipe is left in the attempt's folder"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::process::{Cause, Command, Control, Environment, Limits, Runner};

    #[tokio::test]
    async fn a_write_fails_when_the_program_has_read_and_reads_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut feed = Feed::make(folder.path()).unwrap();
        feed.push(b"first\n");
        feed.write().await.unwrap();
        feed.was_read();
        feed.push(b"second\n");
        let failed = tokio::time::timeout(Duration::from_secs(60), feed.write()).await;
        assert_eq!(failed.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_program_reads_more_than_a_pipe_holds_and_then_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut feed = Feed::make(folder.path()).unwrap();
        let command = Command {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), "read line; echo \"$line\"; wc -c".into()],
            env: Environment::from_iter([("PATH", "/usr/bin:/bin")]),
            cwd: folder.path().to_owned(),
            stdin: feed.stdin(),
        };
        let limits = Limits {
            timeout: Some(Duration::from_secs(60)),
            grace: Duration::from_secs(1),
        };
        let (sender, mut chunks) = mpsc::channel(4);
        let control = Control::stop_only(CancellationToken::new());
        let runner = Runner::default();
        let running = runner.run(command, limits, control, sender);
        let talking = async {
            feed.push(b"hello\n");
            while feed.waiting() > 0 {
                feed.write().await.unwrap();
            }
            let mut printed = chunks.recv().await.unwrap().bytes.to_vec();
            assert_eq!(printed, b"hello\n");
            feed.push(&vec![b'x'; 300_000]);
            while feed.waiting() > 0 {
                feed.write().await.unwrap();
            }
            drop(feed);
            printed.clear();
            while let Some(chunk) = chunks.recv().await {
                printed.extend_from_slice(&chunk.bytes);
            }
            String::from_utf8(printed).unwrap().trim().to_owned()
        };
        let (ended, counted) = tokio::join!(running, talking);
        assert_eq!((ended.unwrap().cause, counted.as_str()), (Cause::Itself, "300000"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
