//! The data folder of this machine's coordinator, and whether its disk makes writes durable.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use kage_agent::identity::renewal::Validity;
use serde::Serialize;

/// A slower sync makes every commit slow.
const SLOW_SYNC: Duration = Duration::from_millis(250);
/// A running coordinator renews its certificate a month before its end.
const CERTIFICATE_DAYS: u64 = 14;

#[derive(Debug, Serialize)]
pub(super) struct Data {
    dir: String,
    pub(super) database_bytes: Option<u64>,
    /// Bytes of packs, contexts, prompts and conversations.
    pub(super) blob_bytes: u64,
    pub(super) output_bytes: u64,
    pub(super) repository_bytes: u64,
    pub(super) free_bytes: Option<u64>,
    /// The time to write a block durably.
    pub(super) sync_millis: Option<f64>,
    /// The end of the server's certificate, when it speaks TLS.
    pub(super) certificate_until: Option<String>,
}

/// Looks at the data of a coordinator that has run here; `None` when none has.
pub(super) fn check(dir: &Path, now_millis: u64, problems: &mut Vec<String>) -> Option<Data> {
    if !dir.is_dir() {
        return None;
    }
    let sync = match sync(dir) {
        Ok(took) => {
            if took > SLOW_SYNC {
                problems.push(format!(
                    "the disk of {} takes {} ms to make a write durable; every commit waits that long",
                    dir.display(),
                    took.as_millis()
                ));
            }
            Some(took.as_secs_f64() * 1000.0)
        }
        Err(error) => {
            problems.push(format!("nothing can be written durably in {}: {error}", dir.display()));
            None
        }
    };
    let certificate = std::fs::read(dir.join("tls/server.pem")).ok().and_then(|pem| {
        let validity = Validity::of(&pem);
        if validity.is_none() {
            problems.push(format!("{} is no certificate", dir.join("tls/server.pem").display()));
        }
        validity
    });
    if let Some(validity) = certificate
        && validity.until.as_millis() < now_millis + CERTIFICATE_DAYS * 24 * 3600 * 1000
    {
        problems.push(format!(
            "the coordinator's certificate ends at {}; it is renewed when the coordinator runs",
            validity.until
        ));
    }
    Some(Data {
        dir: dir.display().to_string(),
        database_bytes: std::fs::metadata(dir.join("kage.db")).ok().map(|file| file.len()),
        blob_bytes: bytes_under(&dir.join("blobs")),
        output_bytes: bytes_under(&dir.join("output")),
        repository_bytes: bytes_under(&dir.join("repos")),
        free_bytes: super::free_bytes(dir),
        sync_millis: sync,
        certificate_until: certificate.map(|validity| validity.until.to_string()),
    })
}

/// The sizes of all files below a folder, as far as it can be read; links are not followed.
fn bytes_under(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_under(&entry.path()),
        Ok(_) => entry.metadata().map_or(0, |file| file.len()),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Measures the time to write a block durably.
fn sync(dir: &Path) -> std::io::Result<Duration> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    let start = Instant::now();
    file.write_all(&[0; 4096])?;
    file.as_file().sync_all()?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ran_is_not_looked_at_and_what_cannot_be_used_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let mut problems = Vec::new();
        assert!(check(&dir.path().join("absent"), 0, &mut problems).is_none());
        let data = check(dir.path(), 0, &mut problems).unwrap();
        assert!(data.free_bytes.is_some() && data.sync_millis.is_some());
        assert_eq!(data.certificate_until, None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(problems, Vec::<String>::new());
        std::fs::create_dir_all(dir.path().join("blobs/default/ab")).unwrap();
        std::fs::write(dir.path().join("blobs/default/ab/abc"), "12345").unwrap();
        let data = check(dir.path(), 0, &mut problems).unwrap();
        assert_eq!((data.blob_bytes, data.output_bytes), (5, 0));
        std::fs::create_dir(dir.path().join("tls")).unwrap();
        std::fs::write(dir.path().join("tls/server.pem"), "nothing").unwrap();
        check(dir.path(), 0, &mut problems).unwrap();
        assert!(problems[0].contains("no certificate"), "{problems:?}");
    }
}
