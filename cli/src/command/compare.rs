//! `kage compare`: the sessions of a task, best first, with everything the order depends on.

use kage_proto::v1;

use super::compare_by;
use crate::args::{Compare, Format};
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::output::note;
use crate::table::{Shape, Table};
use crate::tasks;
use crate::verification;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Compare) -> anyhow::Result<Exit> {
    if let Some(by) = args.by {
        return compare_by::run(invocation, args, by).await;
    }
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    let response = tasks::report(&access, &task.id).await?;
    let report = response.report.unwrap_or_default();
    verification::compared(&invocation.out, &access, &task, &report).await?;
    let out = &invocation.out;
    if args.markdown {
        out.text(&markdown(&report))?;
    } else if out.format() == Format::Tsv {
        out.table(&view::report(&report))?;
    } else {
        out.paged(&view::report_text(&report, Shape::of(out.screen())))?;
    }
    if report.provisional {
        note("sessions are still running: the order may change");
    }
    Ok(Exit::Done)
}

/// The report as Markdown: a table, and the notes on all sessions.
pub(super) fn markdown(report: &v1::Report) -> String {
    let mut text = table(&view::report(report));
    for sentence in &report.notes {
        text += &format!("\n{}\n", view::one_line(sentence, 500));
    }
    text
}

fn table(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(table.titles().map(str::to_owned).collect());
    text += &line(table.titles().map(|_| "---".to_owned()).collect());
    for row in table.texts() {
        text += &line(row.iter().map(|cell| cell.replace('|', "\\|")).collect());
    }
    text
}
