//! Tokens, money, failures and the size of a diff.

use kage_core::event::DiffStat;
use kage_core::failure::{Failure, FailureKind};
use kage_core::tool_uses::ToolUses;
use kage_core::usage::{Money, PicoUsd, Provenance, Unreported, Usage};

use super::time::{duration, span};
use super::{InvalidField, enumerated, unspecified};
use crate::v1;

/// The only currency of this version.
const USD: &str = "USD";

impl From<Usage> for v1::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            input: usage.input,
            cache_write_5m: usage.cache_write_5m,
            cache_write_1h: usage.cache_write_1h,
            cache_read: usage.cache_read,
            output: usage.output,
            reasoning: usage.reasoning,
            unreported: usage.unreported.bits(),
        }
    }
}

impl From<v1::Usage> for Usage {
    fn from(usage: v1::Usage) -> Self {
        Self {
            input: usage.input,
            cache_write_5m: usage.cache_write_5m,
            cache_write_1h: usage.cache_write_1h,
            cache_read: usage.cache_read,
            output: usage.output,
            reasoning: usage.reasoning,
            unreported: Unreported::from_bits(usage.unreported),
        }
    }
}

/// Counts that no model can have are not known, rather than absurd.
pub(super) fn plausible(usage: Usage) -> Usage {
    if usage.is_plausible() { usage } else { Usage::UNKNOWN }
}

impl From<Provenance> for v1::Provenance {
    fn from(provenance: Provenance) -> Self {
        match provenance {
            Provenance::Billed => Self::Billed,
            Provenance::Reported => Self::Reported,
            Provenance::Estimated => Self::Estimated,
            Provenance::Free => Self::Free,
            Provenance::Unknown => Self::Unknown,
        }
    }
}

impl From<Money> for v1::Money {
    fn from(money: Money) -> Self {
        Self {
            pico: money.amount.map(|amount| amount.0),
            currency: USD.to_owned(),
            provenance: v1::Provenance::from(money.provenance).into(),
        }
    }
}

impl TryFrom<v1::Money> for Money {
    type Error = InvalidField;

    fn try_from(money: v1::Money) -> Result<Self, InvalidField> {
        if money.currency != USD {
            return Err(InvalidField::new(
                "currency",
                format_args!("{:?} is not USD", money.currency),
            ));
        }
        let provenance = match enumerated("provenance", money.provenance)? {
            v1::Provenance::Unspecified => return Err(unspecified("provenance")),
            v1::Provenance::Billed => Provenance::Billed,
            v1::Provenance::Reported => Provenance::Reported,
            v1::Provenance::Estimated => Provenance::Estimated,
            v1::Provenance::Unknown => Provenance::Unknown,
            v1::Provenance::Free => Provenance::Free,
        };
        if money.pico.is_none() != (provenance == Provenance::Unknown) {
            return Err(InvalidField::new(
                "pico",
                "must be absent exactly when the provenance is unknown",
            ));
        }
        Ok(Self {
            amount: money.pico.map(PicoUsd),
            provenance,
        })
    }
}

impl From<DiffStat> for v1::DiffStat {
    fn from(diff: DiffStat) -> Self {
        Self {
            files: diff.files,
            added: diff.added,
            removed: diff.removed,
        }
    }
}

impl From<v1::DiffStat> for DiffStat {
    fn from(diff: v1::DiffStat) -> Self {
        Self {
            files: diff.files,
            added: diff.added,
            removed: diff.removed,
        }
    }
}

impl From<FailureKind> for v1::FailureKind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::RateLimited => Self::RateLimited,
            FailureKind::Overloaded => Self::Overloaded,
            FailureKind::Network => Self::Network,
            FailureKind::Timeout => Self::Timeout,
            FailureKind::QuotaExhausted => Self::QuotaExhausted,
            FailureKind::Auth => Self::Auth,
            FailureKind::TokenExpired => Self::TokenExpired,
            FailureKind::InvalidRequest => Self::InvalidRequest,
            FailureKind::ContextOverflow => Self::ContextOverflow,
            FailureKind::ContextUnavailable => Self::ContextUnavailable,
            FailureKind::CorruptedState => Self::CorruptedState,
            FailureKind::LogicError => Self::LogicError,
            FailureKind::TurnLimit => Self::TurnLimit,
            FailureKind::NoChange => Self::NoChange,
            FailureKind::ResultTooLarge => Self::ResultTooLarge,
            FailureKind::SecretFound => Self::SecretFound,
            FailureKind::ResultRefused => Self::ResultRefused,
            FailureKind::ModelRefused => Self::ModelRefused,
            FailureKind::AdapterCrash => Self::AdapterCrash,
            FailureKind::AdapterUnavailable => Self::AdapterUnavailable,
            FailureKind::DiskFull => Self::DiskFull,
            FailureKind::MachineBusy => Self::MachineBusy,
            FailureKind::SetupFailed => Self::SetupFailed,
            FailureKind::AgentLost => Self::AgentLost,
            FailureKind::BudgetExceeded => Self::BudgetExceeded,
            FailureKind::Cancelled => Self::Cancelled,
            FailureKind::Unknown => Self::Unknown,
        }
    }
}

impl From<Failure> for v1::Failure {
    fn from(failure: Failure) -> Self {
        Self {
            kind: v1::FailureKind::from(failure.kind).into(),
            message: failure.message,
            retry_after: failure.retry_after.map(span),
        }
    }
}

impl From<v1::Failure> for Failure {
    /// A kind that this build does not know is [`FailureKind::Unknown`]: an agent may be newer.
    fn from(failure: v1::Failure) -> Self {
        let kind = match v1::FailureKind::try_from(failure.kind) {
            Ok(v1::FailureKind::RateLimited) => FailureKind::RateLimited,
            Ok(v1::FailureKind::Overloaded) => FailureKind::Overloaded,
            Ok(v1::FailureKind::Network) => FailureKind::Network,
            Ok(v1::FailureKind::Timeout) => FailureKind::Timeout,
            Ok(v1::FailureKind::QuotaExhausted) => FailureKind::QuotaExhausted,
            Ok(v1::FailureKind::Auth) => FailureKind::Auth,
            Ok(v1::FailureKind::TokenExpired) => FailureKind::TokenExpired,
            Ok(v1::FailureKind::InvalidRequest) => FailureKind::InvalidRequest,
            Ok(v1::FailureKind::ContextOverflow) => FailureKind::ContextOverflow,
            Ok(v1::FailureKind::ContextUnavailable) => FailureKind::ContextUnavailable,
            Ok(v1::FailureKind::CorruptedState) => FailureKind::CorruptedState,
            Ok(v1::FailureKind::LogicError) => FailureKind::LogicError,
            Ok(v1::FailureKind::TurnLimit) => FailureKind::TurnLimit,
            Ok(v1::FailureKind::NoChange) => FailureKind::NoChange,
            Ok(v1::FailureKind::ResultTooLarge) => FailureKind::ResultTooLarge,
            Ok(v1::FailureKind::SecretFound) => FailureKind::SecretFound,
            Ok(v1::FailureKind::ResultRefused) => FailureKind::ResultRefused,
            Ok(v1::FailureKind::ModelRefused) => FailureKind::ModelRefused,
            Ok(v1::FailureKind::AdapterCrash) => FailureKind::AdapterCrash,
            Ok(v1::FailureKind::AdapterUnavailable) => FailureKind::AdapterUnavailable,
            Ok(v1::FailureKind::DiskFull) => FailureKind::DiskFull,
            Ok(v1::FailureKind::MachineBusy) => FailureKind::MachineBusy,
            Ok(v1::FailureKind::SetupFailed) => FailureKind::SetupFailed,
            Ok(v1::FailureKind::AgentLost) => FailureKind::AgentLost,
            Ok(v1::FailureKind::BudgetExceeded) => FailureKind::BudgetExceeded,
            Ok(v1::FailureKind::Cancelled) => FailureKind::Cancelled,
            Ok(v1::FailureKind::Unknown | v1::FailureKind::Unspecified) | Err(_) => FailureKind::Unknown,
        };
        Self {
            kind,
            message: failure.message,
            retry_after: failure.retry_after.map(duration),
        }
    }
}

impl From<ToolUses> for v1::ToolUses {
    fn from(uses: ToolUses) -> Self {
        let uses = uses.iter().map(|(tool, calls)| v1::ToolUse {
            tool: tool.to_owned(),
            calls,
        });
        Self { uses: uses.collect() }
    }
}

impl From<v1::ToolUses> for ToolUses {
    fn from(wire: v1::ToolUses) -> Self {
        let mut uses = Self::default();
        for used in wire.uses {
            uses.add(&used.tool, used.calls);
        }
        uses
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_failure_kind_survives_the_wire() {
        for kind in [
            FailureKind::RateLimited,
            FailureKind::Overloaded,
            FailureKind::Network,
            FailureKind::Timeout,
            FailureKind::QuotaExhausted,
            FailureKind::Auth,
            FailureKind::TokenExpired,
            FailureKind::InvalidRequest,
            FailureKind::ContextOverflow,
            FailureKind::ContextUnavailable,
            FailureKind::CorruptedState,
            FailureKind::LogicError,
            FailureKind::TurnLimit,
            FailureKind::NoChange,
            FailureKind::ResultTooLarge,
            FailureKind::SecretFound,
            FailureKind::MachineBusy,
            FailureKind::ResultRefused,
            FailureKind::ModelRefused,
            FailureKind::AdapterCrash,
            FailureKind::AdapterUnavailable,
            FailureKind::DiskFull,
            FailureKind::SetupFailed,
            FailureKind::AgentLost,
            FailureKind::BudgetExceeded,
            FailureKind::Cancelled,
            FailureKind::Unknown,
        ] {
            let mut failure = Failure::new(kind, "words");
            failure.retry_after = Some(Duration::from_millis(1500));
            assert_eq!(Failure::from(v1::Failure::from(failure.clone())), failure);
        }
    }

    #[test]
    fn unknown_tokens_stay_unknown_on_the_wire() {
        let mut usage = Usage::UNKNOWN;
        usage += Usage {
            input: 5,
            ..Usage::default()
        };
        assert_eq!(Usage::from(v1::Usage::from(usage)), usage);
        assert_eq!(Usage::from(v1::Usage::default()), Usage::default());
    }

    #[test]
    fn money_keeps_amount_and_provenance_together() {
        let cases = [
            (Some(PicoUsd(12)), Provenance::Billed),
            (Some(PicoUsd(-3)), Provenance::Reported),
            (Some(PicoUsd(0)), Provenance::Estimated),
            (Some(PicoUsd(0)), Provenance::Free),
            (None, Provenance::Unknown),
        ];
        for (amount, provenance) in cases {
            let money = Money { amount, provenance };
            assert_eq!(Money::try_from(v1::Money::from(money)), Ok(money));
        }
        let mut wrong = v1::Money::from(Money {
            amount: None,
            provenance: Provenance::Unknown,
        });
        wrong.pico = Some(0);
        assert_eq!(Money::try_from(wrong).map_err(|e| e.field), Err("pico".to_owned()));
    }
}
