//! What must hold of the money of every task that a story sees end: the rows of the ledger add up to what its
//! sessions are said to have cost, by provenance and to the last unit, and to their tokens.

use std::collections::BTreeMap;

use kage_proto::client::Client;
use kage_proto::v1;
use tonic::Code;

use crate::wait::poll;

/// Tokens by class, and amounts by provenance.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    tokens: [u64; 5],
    /// 0 for an amount that is not known.
    money: BTreeMap<i32, i64>,
}

impl Sums {
    fn add(&mut self, usage: Option<&v1::Usage>, money: &[v1::Money]) {
        if let Some(usage) = usage {
            let classes = [
                usage.input,
                usage.cache_write_5m,
                usage.cache_write_1h,
                usage.cache_read,
                usage.output,
            ];
            for (sum, tokens) in self.tokens.iter_mut().zip(classes) {
                *sum += tokens;
            }
        }
        for amount in money {
            *self.money.entry(amount.provenance).or_default() += amount.pico.unwrap_or_default();
        }
    }
}

/// Compares both books of a task that has ended. A coordinator that is gone by now, or is of a version without a
/// ledger, is not asked.
pub(crate) async fn agree(client: &Client, task: &str) {
    let mut last = None;
    let compared = poll(async || {
        let books = read(client, task).await;
        let agree = books.as_ref().is_none_or(|(ledger, sessions)| ledger == sessions);
        last = books;
        agree.then_some(())
    });
    if compared.await.is_none() {
        panic!("the ledger and the sessions of task {task} differ: {last:#?}");
    }
}

/// What the ledger says of a task, and its sessions. `None`: nobody answers.
async fn read(client: &Client, task: &str) -> Option<(Sums, Sums)> {
    let request = v1::GetCostsRequest {
        filter: Some(v1::CallFilter {
            task_id: task.to_owned(),
            ..v1::CallFilter::default()
        }),
        by: v1::CostsBy::Task.into(),
        ..v1::GetCostsRequest::default()
    };
    let costs = match client.costs().get_costs(request).await {
        Ok(costs) => costs.into_inner(),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::Unimplemented) => return None,
        Err(status) => panic!("the ledger cannot be read: {status:?}"),
    };
    let request = v1::GetTaskRequest {
        task_id: task.to_owned(),
        view: v1::TaskView::Full.into(),
    };
    let task = client.tasks().get_task(request).await.ok()?.into_inner().task?;
    let (mut ledger, mut sessions) = (Sums::default(), Sums::default());
    let total = costs.total.unwrap_or_default();
    ledger.add(total.usage.as_ref(), &total.money);
    for session in &task.sessions {
        sessions.add(session.usage.as_ref(), &session.money);
    }
    Some((ledger, sessions))
}
