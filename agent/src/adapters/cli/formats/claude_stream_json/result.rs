//! The `result` line at the end of a run: the outcome, and the usage of each model.

use std::collections::BTreeMap;

use kage_core::usage::{PicoUsd, Unreported, Usage, UsageClass};
use serde::Deserialize;

use super::super::super::dollars::pico;

#[derive(Debug, Deserialize)]
pub(super) struct ResultLine {
    #[serde(default)]
    pub(super) subtype: String,
    #[serde(default)]
    pub(super) is_error: bool,
    #[serde(default)]
    pub(super) terminal_reason: Option<String>,
    #[serde(default)]
    pub(super) api_error_status: Option<u16>,
    #[serde(default)]
    pub(super) api_error_type: Option<String>,
    #[serde(default)]
    pub(super) api_error: Option<String>,
    #[serde(default)]
    pub(super) result: Option<String>,
    #[serde(default)]
    pub(super) errors: Vec<String>,
    #[serde(default, rename = "modelUsage")]
    pub(super) model_usage: BTreeMap<String, ModelUsage>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ModelUsage {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default, rename = "cacheCreationEphemeral1hInputTokens")]
    cache_creation_1h: Option<u64>,
    #[serde(default)]
    thinking_tokens: Option<u64>,
    #[serde(default, rename = "costUSD")]
    cost_usd: f64,
    /// The prices behind the cost: "list" means the provider's; other values are the program's own.
    #[serde(default)]
    cost_basis: Option<String>,
}

impl ModelUsage {
    pub(super) fn usage(&self) -> Usage {
        let written = self.cache_creation_input_tokens.unwrap_or(0);
        let hour = self.cache_creation_1h.unwrap_or(0).min(written);
        let told = [
            (UsageClass::Input, self.input_tokens),
            (UsageClass::CacheWrite5m, self.cache_creation_input_tokens),
            (UsageClass::CacheWrite1h, self.cache_creation_input_tokens),
            (UsageClass::CacheRead, self.cache_read_input_tokens),
            (UsageClass::Output, self.output_tokens),
            (UsageClass::Reasoning, self.thinking_tokens),
        ];
        let untold = told.iter().filter(|(_, tokens)| tokens.is_none());
        Usage {
            input: self.input_tokens.unwrap_or(0),
            cache_write_5m: written - hour,
            cache_write_1h: hour,
            cache_read: self.cache_read_input_tokens.unwrap_or(0),
            output: self.output_tokens.unwrap_or(0),
            reasoning: self.thinking_tokens.unwrap_or(0),
            unreported: untold.fold(Unreported::default(), |all, (class, _)| all.with(*class)),
        }
    }

    /// The cost, if it comes from the provider's prices. For unknown models the program invents a
    /// price.
    pub(super) fn cost(&self) -> Option<PicoUsd> {
        (self.cost_basis.as_deref() == Some("list")).then(|| pico(self.cost_usd))
    }
}
