//! `[budgets]` of a coordinator's file: what each person and each project may spend in a day or month.

use kage_core::budget::{BudgetPeriod, BudgetRule, BudgetScope, Limit};
use kage_core::usage::PicoUsd;
use serde::Deserialize;

use super::money::written_dollars;

/// `[budgets]`, in dollars; unset = no limit. Days and months begin at midnight in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetSettings {
    /// Of the tasks of each person in a day.
    #[serde(deserialize_with = "written_dollars")]
    pub person_day: Option<PicoUsd>,
    /// Of the tasks of each person in a month.
    #[serde(deserialize_with = "written_dollars")]
    pub person_month: Option<PicoUsd>,
    /// Of each project in a day.
    #[serde(deserialize_with = "written_dollars")]
    pub project_day: Option<PicoUsd>,
    /// Of each project in a month.
    #[serde(deserialize_with = "written_dollars")]
    pub project_month: Option<PicoUsd>,
}

impl BudgetSettings {
    /// The budgets of a coordinator with these.
    #[must_use]
    pub fn rules(self) -> Vec<BudgetRule> {
        let all = [
            (BudgetScope::Person(BudgetPeriod::Day), self.person_day),
            (BudgetScope::Person(BudgetPeriod::Month), self.person_month),
            (BudgetScope::Project(BudgetPeriod::Day), self.project_day),
            (BudgetScope::Project(BudgetPeriod::Month), self.project_month),
        ];
        let set = all.into_iter().filter_map(|(scope, money)| {
            let limit = Limit {
                money: Some(money?),
                tokens: None,
            };
            Some(BudgetRule { scope, limit })
        });
        set.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_becomes_a_rule() {
        assert!(BudgetSettings::default().rules().is_empty());
        let read: BudgetSettings = toml::from_str("person_day = '2.50'\nproject_month = '300'").unwrap();
        let rules = read.rules();
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[0].scope, BudgetScope::Person(BudgetPeriod::Day));
        assert_eq!(rules[0].limit.money, Some(PicoUsd(2_500_000_000_000)));
        assert_eq!(rules[1].scope, BudgetScope::Project(BudgetPeriod::Month));
        for wrong in ["person_day = '-1'", "person_week = '1'"] {
            assert!(toml::from_str::<BudgetSettings>(wrong).is_err(), "{wrong}");
        }
    }
}
