//! `kage init`: writes a `kage.toml` with the commands that were found in the project.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;
use serde::Serialize;

use crate::args::Init;
use crate::exit::{Exit, Refusal};
use crate::found::{self, Found};
use crate::output::{Output, note};
use crate::settings::PROJECT_FILE;

#[derive(Debug, Serialize)]
struct InitJson<'a> {
    /// The file; null when it was only printed.
    path: Option<String>,
    found: &'a [Found],
    text: &'a str,
}

pub(super) fn run(out: &Output, args: &Init) -> anyhow::Result<Exit> {
    let folder = &args.folder;
    if !folder.is_dir() {
        return Err(Refusal::not_found(format!("there is no folder {}", folder.display())).into());
    }
    let found = found::found(folder);
    let text = found::written(folder, &found);
    let path = folder.join(PROJECT_FILE);
    if !args.print {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create_new(!args.force)
            .create(true)
            .truncate(args.force);
        match options.open(&path).and_then(|mut file| file.write_all(text.as_bytes())) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Refusal::usage(format!(
                    "{} is there already; --force replaces it, --print only shows what would be written",
                    path.display()
                ))
                .into());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
    }
    out.result(
        "init",
        &InitJson {
            path: (!args.print).then(|| path.display().to_string()),
            found: &found,
            text: &text,
        },
    )?;
    out.text(&text)?;
    match found.first() {
        Some(first) => note(&format!("found {} ({})", first.tool, first.file)),
        None => note("found no tool that Kage knows; name the command of `verify` yourself"),
    }
    if !args.print {
        note(&format!(
            "{} is written; commit it, then `kage run \"...\" --with ADAPTER` works without further flags",
            path.display()
        ));
    }
    Ok(Exit::Done)
}
