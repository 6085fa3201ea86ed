//! Reading, writing and editing one file.

use std::io::Read as _;

use super::image::{image, media_type};
use super::root::{Relative, Root};
use super::{Done, EditFile, PatchFile, ReadFile, Refused, WriteFile, patch};

/// The largest file that is read or edited.
const MAX_FILE: u64 = 16 << 20;
/// Maximum of a file's bytes in one answer.
const MAX_ANSWER: usize = 100 << 10;
/// Maximum of lines in one answer.
const MAX_LINES: usize = 2000;

fn content(root: &Root, text: &str) -> Result<Vec<u8>, Refused> {
    content_at(root, &Relative::parse(text)?, text)
}

/// The content of the file at a path, which errors call `text`.
fn content_at(root: &Root, path: &Relative, text: &str) -> Result<Vec<u8>, Refused> {
    let (file, stat) = root.file(path)?;
    let too_large = |size: u64| {
        Refused::new(format!(
            "{text}: has {size} bytes, more than the {MAX_FILE} that can be read; use search or bash"
        ))
    };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size > MAX_FILE {
        return Err(too_large(size));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Refused::new(format!("{text}: {error}")))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// The text of a file; `None`: there is none.
///
/// # Errors
/// When it is no text, is too large, or may not be read.
pub(in crate::adapters) fn text_file(root: &Root, path: &Relative) -> Result<Option<String>, Refused> {
    if root.is_absent(path) {
        return Ok(None);
    }
    let shown = path.as_path().display().to_string();
    let bytes = content_at(root, path, &shown)?;
    let text = String::from_utf8(bytes).map_err(|_| Refused::new(format!("{shown}: is not UTF-8 text")))?;
    Ok(Some(text))
}

/// True for content that is not text.
pub(super) fn is_binary(bytes: &[u8]) -> bool {
    bytes.iter().take(8192).any(|byte| *byte == 0)
}

pub(super) fn read(root: &Root, call: &ReadFile) -> Result<Done, Refused> {
    let bytes = content(root, &call.path)?;
    if let Some(kind) = media_type(&bytes) {
        let image = image(kind, &bytes);
        let note = if image.is_none() { ", too large to be shown" } else { "" };
        return Ok(Done {
            text: format!("[{}: {kind}, {} bytes{note}]", call.path, bytes.len()),
            image,
        });
    }
    if is_binary(&bytes) {
        return Err(Refused::new(format!(
            "{}: is a binary file of {} bytes",
            call.path,
            bytes.len()
        )));
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let first = call.offset.unwrap_or(1).max(1);
    if first > lines.len().max(1) {
        return Err(Refused::new(format!("{}: has only {} lines", call.path, lines.len())));
    }
    let wanted = call.limit.unwrap_or(MAX_LINES).min(MAX_LINES);
    let mut answer = String::new();
    let mut last = first - 1;
    for line in lines.iter().skip(first - 1).take(wanted) {
        if answer.len() + line.len() > MAX_ANSWER {
            break;
        }
        answer.push_str(line);
        last += 1;
    }
    if last < first && !lines.is_empty() && wanted > 0 {
        // A line that is longer than the maximum of an answer.
        let line = lines[first - 1];
        let cut = line.floor_char_boundary(MAX_ANSWER);
        answer.push_str(&line[..cut]);
        last = first;
        answer.push_str(&format!("\n[line {first} is cut: it has {} bytes]", line.len()));
    }
    if last < lines.len() {
        if !answer.is_empty() && !answer.ends_with('\n') {
            answer.push('\n');
        }
        answer.push_str(&format!(
            "[lines {first} to {last} of {}; read on with offset {}]",
            lines.len(),
            last + 1
        ));
    }
    Ok(answer.into())
}

pub(super) fn write(root: &Root, call: &WriteFile) -> Result<String, Refused> {
    root.replace(&Relative::parse(&call.path)?, call.content.as_bytes())?;
    Ok(format!("wrote {} bytes to {}", call.content.len(), call.path))
}

pub(super) fn edit(root: &Root, call: &EditFile) -> Result<String, Refused> {
    if call.old.is_empty() {
        return Err(Refused::new(
            "the text to replace is empty; use write_file to make a file",
        ));
    }
    if call.old == call.new {
        return Err(Refused::new("the text to replace and its replacement are the same"));
    }
    let bytes = content(root, &call.path)?;
    let text =
        String::from_utf8(bytes).map_err(|_| Refused::new(format!("{}: is not UTF-8 text; use bash", call.path)))?;
    let places: Vec<usize> = text.match_indices(&call.old).map(|(at, _)| at).collect();
    let line_of = |at: usize| text[..at].matches('\n').count() + 1;
    match places[..] {
        [at] => {
            let mut edited = String::with_capacity(text.len() + call.new.len());
            edited.push_str(&text[..at]);
            edited.push_str(&call.new);
            edited.push_str(&text[at + call.old.len()..]);
            root.replace(&Relative::parse(&call.path)?, edited.as_bytes())?;
            Ok(format!("edited {} at line {}", call.path, line_of(at)))
        }
        [] => Err(Refused::new(not_found(&text, call))),
        _ => {
            let lines: Vec<String> = places.iter().take(10).map(|at| line_of(*at).to_string()).collect();
            Err(Refused::new(format!(
                "{}: the text occurs {} times (lines {}{}); add lines around it until it is unique",
                call.path,
                places.len(),
                lines.join(", "),
                if places.len() > lines.len() { ", ..." } else { "" }
            )))
        }
    }
}

pub(super) fn patch(root: &Root, call: &PatchFile) -> Result<String, Refused> {
    let path = Relative::parse(&call.path)?;
    // A patch may make a file.
    let text = text_file(root, &path)?.unwrap_or_default();
    let (patched, hunks) =
        patch::apply(&text, &call.patch).map_err(|Refused(why)| Refused::new(format!("{}: {why}", call.path)))?;
    root.replace(&path, patched.as_bytes())?;
    Ok(format!("applied {hunks} hunks to {}", call.path))
}

/// Names the text that is nearest to the missing one.
fn not_found(text: &str, call: &EditFile) -> String {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let path = &call.path;
    if text.contains("\r\n") && !call.old.contains('\r') && text.replace("\r\n", "\n").contains(&call.old) {
        return format!("{path}: the text is there with CRLF line ends; use \\r\\n");
    }
    if squeeze(text).contains(&squeeze(&call.old)) {
        return format!("{path}: the text is there with other white space; read the file and copy it exactly");
    }
    let first = call.old.lines().map(str::trim).find(|line| !line.is_empty());
    let near = first.and_then(|first| text.lines().position(|line| line.trim() == first));
    match near {
        Some(line) => format!(
            "{path}: the text is not there; its first line is at line {}, what follows differs",
            line + 1
        ),
        None => format!("{path}: the text is not there; read the file first"),
    }
}
