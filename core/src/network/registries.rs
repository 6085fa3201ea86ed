//! The hosts of package managers, as data: `core/data/registries.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

use super::rule::AllowRule;

/// A package manager's hosts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Its name.
    pub name: String,
    /// What is there.
    pub says: String,
    /// The hosts from which it downloads.
    pub hosts: Vec<AllowRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    registry: Vec<Registry>,
}

static SHIPPED: LazyLock<Vec<Registry>> = LazyLock::new(|| {
    let table: Table =
        toml::from_str(include_str!("../../data/registries.toml")).expect("the tests read the shipped registries");
    table.registry
});

/// Those that are shipped.
#[must_use]
pub fn registries() -> &'static [Registry] {
    &SHIPPED
}
