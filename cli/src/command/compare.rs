//! `kage compare`: the sessions of a task, best first, with everything the order depends on.

use super::{Session, report, task};
use crate::args::Compare;
use crate::exit::Exit;
use crate::output::note;
use crate::view::{self, TaskJson};

pub(super) async fn run(session: &Session, args: Compare) -> anyhow::Result<Exit> {
    let access = session.existing().await?;
    let task = task(&access, args.task).await?;
    let response = report(&access, &task.id).await?;
    let report = response.report.unwrap_or_default();
    session.out.result(&TaskJson::of_report(task.state(), &report))?;
    if args.markdown {
        session.out.text(&markdown(&view::report_rows(&report)))?;
    } else {
        session
            .out
            .text(&view::table(&view::REPORT_HEADER, view::report_rows(&report)))?;
    }
    if response.provisional {
        note("sessions are still running: the order may change");
    }
    Ok(Exit::Done)
}

fn markdown(rows: &[Vec<String>]) -> String {
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
