//! `kage fork`: another adapter or model goes on from a session's files, beside it in the same task.

use anyhow::Context as _;
use kage_proto::v1;

use super::{run, send};
use crate::args::Fork;
use crate::assignments;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::output::note;
use crate::picked;
use crate::tasks;
use crate::view;

pub(super) async fn run(invocation: &Invocation, args: Fork) -> anyhow::Result<Exit> {
    let text = run::prompt(args.prompt.as_deref(), args.prompt_file.as_deref())?;
    let with = assignments::workers(&[args.with], 1, &args.fallback)?
        .into_iter()
        .next();
    let with = with.context("one worker follows from one entry")?;
    if with.timeout.is_some() {
        return Err(Refusal::usage("a fork has the time limit of its task; name the adapter without @TIME").into());
    }
    let access = invocation.existing().await?;
    let (task, session) = picked::session(&access, args.session.task, &args.session.session).await?;
    let request = v1::ForkSessionRequest {
        task_id: task.id.clone(),
        session: session.clone(),
        checkpoint: args.checkpoint.unwrap_or_default(),
        adapter: with.adapter.to_string(),
        model: with.model.unwrap_or_default(),
        fallbacks: with.fallbacks.into_iter().map(Into::into).collect(),
        text,
        wait_for_agent: args.wait_for_agent,
        ..v1::ForkSessionRequest::default()
    };
    let left = send::leave_again(invocation, &task).await?;
    let forked = tasks::fork(&access, request).await;
    if let Some(left) = &left {
        left.settle(forked.is_ok().then_some(&task));
    }
    let forked = forked?;
    let task = forked.task.unwrap_or(task);
    let fork = task.sessions.iter().find(|found| found.name == forked.session);
    let checkpoint = fork
        .and_then(|fork| fork.fork.as_ref())
        .map_or(0, |fork| fork.checkpoint);
    note(&format!(
        "{} of task {} continues from checkpoint {checkpoint} of {}",
        view::printable(&forked.session),
        view::short_id(&task.id),
        view::printable(&session)
    ));
    send::finish(invocation, &access, task, &forked.session, &args.waiting).await
}
