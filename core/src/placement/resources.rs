//! Amounts of Kubernetes resources, as integers.

use std::collections::BTreeMap;

/// Resource name → amount in thousandths of the resource's unit (millicores, milli-bytes, milli-GPUs), as kube-scheduler compares them.
///
/// 64 bits of thousandths hold 9 PB of memory; amounts beyond saturate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources(pub BTreeMap<String, i64>);

impl Resources {
    /// Amount in thousandths; 0 where the resource is not named.
    pub fn milli(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Whole units, rounded down.
    pub fn whole(&self, name: &str) -> i64 {
        self.milli(name).div_euclid(1000)
    }

    /// Adds every amount of `other`.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let entry = self.0.entry(name.clone()).or_insert(0);
            *entry = entry.saturating_add(*amount);
        }
    }

    /// Takes every amount of `other` away.
    pub fn sub(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let entry = self.0.entry(name.clone()).or_insert(0);
            *entry = entry.saturating_sub(*amount);
        }
    }

    /// The larger amount of each resource.
    pub fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let entry = self.0.entry(name.clone()).or_insert(0);
            *entry = (*entry).max(*amount);
        }
    }
}
