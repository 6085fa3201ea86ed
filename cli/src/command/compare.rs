//! `kage compare`: the sessions of a task, best first, with everything the order depends on.

use kage_proto::v1;

use super::compare_by;
use crate::args::Compare;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::output::note;
use crate::tasks;
use crate::view::{self, ComparedJson};

pub(super) async fn run(invocation: &Invocation, args: Compare) -> anyhow::Result<Exit> {
    if let Some(by) = args.by {
        return compare_by::run(invocation, args, by).await;
    }
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let response = tasks::report(&access, &task.id).await?;
    let report = response.report.unwrap_or_default();
    invocation.out.result("task", &ComparedJson::of(&task, &report))?;
    if args.markdown {
        invocation.out.text(&markdown(&report))?;
    } else {
        invocation.out.text(&view::report_text(&report))?;
    }
    if report.provisional {
        note("sessions are still running: the order may change");
    }
    Ok(Exit::Done)
}

/// The report as Markdown: a table, and the notes on all sessions.
pub(super) fn markdown(report: &v1::Report) -> String {
    let mut text = table(&view::report_rows(report));
    for sentence in &report.notes {
        text += &format!("\n{}\n", view::one_line(sentence, 500));
    }
    text
}

fn table(rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(view::REPORT_HEADER.iter().map(|s| (*s).to_owned()).collect());
    text += &line(view::REPORT_HEADER.iter().map(|_| "---".to_owned()).collect());
    for row in rows {
        text += &line(
            row.iter()
                .map(|cell| cell.replace('|', "\\|").replace('\n', " "))
                .collect(),
        );
    }
    text
}
