//! A stand-in for git-lfs, as git calls it: `clean` keeps a content and prints its pointer, `smudge` does the
//! reverse, `process` does both for many files by git's protocol. It keeps contents where git-lfs does, and
//! takes pointers as they are.

use std::fs;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::Command;

use kage_core::id::Digest;

pub(crate) fn run(what: &str) -> io::Result<()> {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    let mut content = Vec::new();
    match what {
        "clean" => {
            stdin.read_to_end(&mut content)?;
            stdout.write_all(&clean(content)?)
        }
        "smudge" => {
            stdin.read_to_end(&mut content)?;
            stdout.write_all(&smudge(content)?)
        }
        "process" => process(&mut stdin, &mut stdout),
        other => Err(io::Error::other(format!("unknown: {other}"))),
    }
}

fn place(digest: &str) -> io::Result<PathBuf> {
    let asked = Command::new("git").args(["rev-parse", "--git-common-dir"]).output()?;
    let dir = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim_end());
    let (one, two) = (
        digest.get(..2).unwrap_or_default(),
        digest.get(2..4).unwrap_or_default(),
    );
    Ok(dir.join("lfs/objects").join(one).join(two).join(digest))
}

/// The digest of a pointer.
fn pointer(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let rest = text.strip_prefix("version https://git-lfs.github.com/spec/v1\noid sha256:")?;
    rest.split('\n').next().map(str::to_owned)
}

fn clean(content: Vec<u8>) -> io::Result<Vec<u8>> {
    if content.is_empty() || pointer(&content).is_some() {
        return Ok(content);
    }
    let digest = Digest::of(&content);
    let place = place(digest.as_str())?;
    fs::create_dir_all(place.parent().unwrap_or(&place))?;
    fs::write(place, &content)?;
    let size = content.len();
    Ok(format!("version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n").into_bytes())
}

fn smudge(text: Vec<u8>) -> io::Result<Vec<u8>> {
    match pointer(&text) {
        Some(digest) => fs::read(place(&digest)?).or(Ok(text)),
        None => Ok(text),
    }
}

/// A packet; `None`: the end of a list.
fn packet(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = std::str::from_utf8(&length)
        .ok()
        .and_then(|text| usize::from_str_radix(text, 16).ok());
    let length = length.ok_or(io::ErrorKind::InvalidData)?;
    let Some(length) = length.checked_sub(4) else {
        return Ok(None);
    };
    let mut packet = vec![0; length];
    from.read_exact(&mut packet)?;
    Ok(Some(packet))
}

fn list(from: &mut impl Read) -> io::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while let Some(packet) = packet(from)? {
        all.push(packet);
    }
    Ok(all)
}

fn send(to: &mut impl Write, packets: &[&[u8]]) -> io::Result<()> {
    for packet in packets {
        write!(to, "{:04x}", packet.len() + 4)?;
        to.write_all(packet)?;
    }
    to.write_all(b"0000")?;
    to.flush()
}

fn process(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    list(from)?;
    send(to, &[b"git-filter-server\n", b"version=2\n"])?;
    list(from)?;
    send(to, &[b"capability=clean\n", b"capability=smudge\n"])?;
    loop {
        let asked = match list(from) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            asked => asked?,
        };
        let content = list(from)?.concat();
        let done = match asked.first().map(Vec::as_slice) {
            Some(b"command=clean\n") => clean(content)?,
            _ => smudge(content)?,
        };
        send(to, &[b"status=success\n"])?;
        send(to, &done.chunks(60_000).collect::<Vec<_>>())?;
        send(to, &[])?;
    }
}
