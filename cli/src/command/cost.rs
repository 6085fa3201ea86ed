//! `kage cost`: what calls of models cost, added up by adapter, model, person, project, task or day.

use kage_core::usage::{Usage, UsageClass};
use kage_proto::convert::time::stamp;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::args::Cost;
use crate::exit::{Exit, Refusal};
use crate::hold;
use crate::invocation::Invocation;
use crate::output::note;
use crate::settings::time;
use crate::table::Table;
use crate::tasks;
use crate::view;

/// Groups of one call.
const PAGE: u32 = 500;

pub(super) async fn run(invocation: &Invocation, args: Cost) -> anyhow::Result<Exit> {
    let since = args.since.as_deref().map(|text| time::moment(text, hold::now()));
    let since = since.transpose().map_err(Refusal::usage)?;
    let access = invocation.existing().await?;
    let mut filter = v1::CallFilter {
        since: since.map(stamp),
        ..v1::CallFilter::default()
    };
    if let Some(task) = args.task {
        filter.task_id = task_id(&access, task).await?;
    } else if !args.all_projects {
        filter.project = access.project.to_string();
    }
    let mut costs = v1::GetCostsResponse::default();
    loop {
        let request = v1::GetCostsRequest {
            filter: Some(filter.clone()),
            by: v1::CostsBy::from(args.by).into(),
            page_size: PAGE,
            page_token: costs.next_page_token.clone(),
        };
        let page = access
            .client
            .costs()
            .get_costs(request)
            .await
            .map_err(ApiError::from)?
            .into_inner();
        costs.groups.extend(page.groups);
        costs.total = page.total;
        costs.next_page_token = page.next_page_token;
        if costs.next_page_token.is_empty() {
            break;
        }
    }
    invocation.out.message("costs", &costs)?;
    if args.csv {
        invocation.out.text(&csv(args.by.as_str(), &costs))?;
    } else if costs.groups.is_empty() {
        invocation.out.text("no call of a model is in the ledger")?;
    } else {
        invocation.out.table(&table(args.by.as_str(), &costs))?;
        let unknown = |money: &v1::Money| money.provenance() == v1::Provenance::Unknown;
        if costs.total.iter().any(|total| total.money.iter().any(unknown)) {
            note("unknown: tokens of models without a price, or that nobody counted; name a price file to price them");
        }
    }
    Ok(Exit::Done)
}

/// A task that is kept, by the first characters of its id; or the whole id of one that was removed.
async fn task_id(access: &crate::connect::Access, asked: String) -> anyhow::Result<String> {
    if asked.parse::<kage_core::id::TaskId>().is_ok() {
        return Ok(asked);
    }
    Ok(tasks::find(access, Some(asked)).await?.id)
}

fn table(by: &'static str, costs: &v1::GetCostsResponse) -> Table {
    let header = [by, "calls", "input", "cache write", "cache read", "output", "money"];
    let total = costs.total.clone().map(|total| v1::CostGroup {
        key: "all".to_owned(),
        ..total
    });
    Table::of_words(&header, costs.groups.iter().chain(&total).map(row))
}

fn row(group: &v1::CostGroup) -> Vec<String> {
    let usage = group.usage.map(Usage::from).unwrap_or_default();
    let tokens = |classes: &[UsageClass]| view::tokens_of(&usage, classes, |count| count.to_string());
    vec![
        if group.key.is_empty() {
            "-".to_owned()
        } else {
            view::printable(&group.key)
        },
        group.calls.to_string(),
        tokens(&[UsageClass::Input]),
        tokens(&[UsageClass::CacheWrite5m, UsageClass::CacheWrite1h]),
        tokens(&[UsageClass::CacheRead]),
        tokens(&[UsageClass::Output]),
        view::money(&group.money),
    ]
}

/// The groups as comma-separated values, with every class of tokens and a column for each provenance:
/// amounts in dollars, exact; empty = there is none of it.
fn csv(by: &str, costs: &v1::GetCostsResponse) -> String {
    let provenances = [
        ("billed_usd", v1::Provenance::Billed),
        ("reported_usd", v1::Provenance::Reported),
        ("estimated_usd", v1::Provenance::Estimated),
    ];
    let mut text = format!("{by},calls,input,cache_write_5m,cache_write_1h,cache_read,output,reasoning");
    for (name, _) in provenances {
        text += &format!(",{name}");
    }
    text += ",free,unknown\n";
    for group in &costs.groups {
        let usage = group.usage.map(Usage::from).unwrap_or_default();
        let of = |provenance| group.money.iter().find(|money| money.provenance() == provenance);
        text += &quoted(&group.key);
        text += &format!(",{}", group.calls);
        for class in UsageClass::ALL {
            let count = usage.of(class).map(|count| count.to_string());
            text += &format!(",{}", count.unwrap_or_default());
        }
        for (_, provenance) in provenances {
            let amount = of(provenance).and_then(|money| money.pico);
            let amount = amount.map(|pico| kage_core::usage::PicoUsd(pico).to_string());
            text += &format!(",{}", amount.unwrap_or_default());
        }
        let has = |provenance| of(provenance).is_some();
        text += &format!(",{},{}\n", has(v1::Provenance::Free), has(v1::Provenance::Unknown));
    }
    text
}

/// A value of a row, in quotes where it needs them.
fn quoted(value: &str) -> String {
    if value.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn costs_fit_every_width() {
        let group = |key: &str, calls: u64, pico: i64| v1::CostGroup {
            key: key.to_owned(),
            calls,
            usage: Some(v1::Usage {
                input: 12_000 * calls,
                cache_write_5m: 800 * calls,
                cache_read: 90_000 * calls,
                output: 1_500 * calls,
                ..v1::Usage::default()
            }),
            money: vec![v1::Money {
                pico: Some(pico),
                currency: "USD".to_owned(),
                provenance: v1::Provenance::Billed.into(),
            }],
        };
        let costs = v1::GetCostsResponse {
            groups: vec![
                group("claude-opus-5-5", 12, 1_840_000_000_000),
                group("claude-sonnet-5-5", 30, 610_000_000_000),
                group("", 1, 0),
            ],
            total: Some(group("", 43, 2_450_000_000_000)),
            ..v1::GetCostsResponse::default()
        };
        insta::assert_snapshot!(everywhere(&table("model", &costs)));
    }

    #[test]
    fn tokens_that_nobody_counted_are_not_zero() {
        let group = v1::CostGroup {
            key: "mends".to_owned(),
            calls: 3,
            usage: Some(v1::Usage {
                output: 7,
                unreported: kage_core::usage::Unreported::ALL.bits(),
                ..v1::Usage::default()
            }),
            money: Vec::new(),
        };
        assert_eq!(row(&group), ["mends", "3", "-", "-", "-", "7+", "-"]);
        let costs = v1::GetCostsResponse {
            groups: vec![group],
            ..v1::GetCostsResponse::default()
        };
        let text = csv("model", &costs);
        assert_eq!(text.lines().nth(1), Some("mends,3,,,,,7,,,,,false,false"));
    }

    #[test]
    fn values_are_exact_and_provenances_have_columns_of_their_own() {
        let money = |pico, provenance: v1::Provenance| v1::Money {
            pico,
            currency: "USD".to_owned(),
            provenance: provenance.into(),
        };
        let group = |key: &str, money| v1::CostGroup {
            key: key.to_owned(),
            calls: 2,
            usage: Some(v1::Usage {
                input: 5,
                cache_write_1h: 3,
                output: 7,
                ..v1::Usage::default()
            }),
            money,
        };
        let costs = v1::GetCostsResponse {
            groups: vec![
                group(
                    "a,\"b\"",
                    vec![
                        money(Some(1_500_000_000_001), v1::Provenance::Billed),
                        money(None, v1::Provenance::Unknown),
                    ],
                ),
                group("c", vec![money(Some(0), v1::Provenance::Free)]),
            ],
            ..v1::GetCostsResponse::default()
        };
        assert_eq!(
            csv("model", &costs),
            "model,calls,input,cache_write_5m,cache_write_1h,cache_read,output,reasoning,billed_usd,reported_usd,\
             estimated_usd,free,unknown\n\
             \"a,\"\"b\"\"\",2,5,0,3,0,7,0,1.500000000001,,,false,true\n\
             c,2,5,0,3,0,7,0,,,,true,false\n"
        );
    }
}
