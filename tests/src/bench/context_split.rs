//! `context-split`: how long it takes to split contexts, and how small they become. The baselines are
//! reading and writing the same contexts, and one session's context as a template whose values are given
//! whole.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use kage_core::context::{Context, diff, split};

use crate::bench::adapter::Noise;
use crate::bench::figure::Figure;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub fields: usize,
    pub sessions: usize,
    /// Bytes of the one value of a large context.
    pub value: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            fields: 1_000,
            sessions: 100,
            value: 10 << 20,
        }
    }
}

/// Measures; fails when a context does not come back.
pub fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut noise = Noise::new(1);
    let mut text = |bytes: usize| hex::encode(noise.take(bytes / 2));
    let shared: Vec<String> = (0..size.fields).map(|_| text(200)).collect();
    let many = (0..size.sessions).map(|session| {
        let fields = shared.iter().enumerate().map(|(field, value)| {
            // Every hundredth field has another number in the middle in each session.
            let value = match field % 100 == session % 100 {
                true => format!("{}{session}{}", &value[..100], &value[100..]),
                false => value.clone(),
            };
            format!("\"field-{field}\":\"{value}\"")
        });
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    });
    let many: Vec<String> = many.collect();
    let long = text(size.value);
    let large: Vec<String> = (0..4)
        .map(|session| {
            let at = long.len() / 5 * (session + 1);
            format!("{{\"value\":\"{}{session}{}\"}}", &long[..at], &long[at..])
        })
        .collect();
    let mut figures = measure("fields x sessions", &many)?;
    figures.extend(measure("10 MiB values", &large)?);
    Ok(figures)
}

fn measure(case: &'static str, texts: &[String]) -> anyhow::Result<Vec<Figure>> {
    let begun = Instant::now();
    let contexts = texts.iter().map(|text| Context::parse(text.as_bytes()));
    let contexts = contexts.collect::<Result<Vec<_>, _>>()?;
    let written: usize = contexts.iter().map(|context| context.canonical().len()).sum();
    let reading = begun.elapsed();

    let begun = Instant::now();
    let split = split(&contexts);
    let splitting = begun.elapsed();
    for (delta, context) in split.deltas.iter().zip(&contexts) {
        let made = match delta {
            None => split.base.clone(),
            Some(delta) => delta.apply(&split.base)?,
        };
        ensure!(made == *context, "a context did not come back");
    }

    let template = contexts.first().context("there are contexts")?;
    let patches = contexts.iter().filter_map(|context| diff(template, context));
    let whole = template.canonical().len() + patches.map(|patch| patch.canonical().len()).sum::<usize>();
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let stored = (split.bytes() as f64, "bytes");
    Ok(vec![
        Figure::new(
            "context-split",
            case,
            (millis(splitting), "ms"),
            ("reading and writing them", millis(reading)),
        ),
        Figure::new("context-split", case, stored, ("every context whole", written as f64)),
        Figure::new(
            "context-split",
            case,
            stored,
            ("one context as template, values whole", whole as f64),
        ),
    ])
}
