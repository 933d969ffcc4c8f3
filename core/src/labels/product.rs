//! The GPUs of a node by product, and which product the keys speak of that have room for one only.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::facts::Gpu;

/// Bytes in a MiB.
const MIB: u64 = 1 << 20;

/// GPUs of one product, as NVML names it; `None`: NVML did not say.
#[derive(Debug, Clone)]
pub(super) struct Product<'a> {
    pub name: Option<&'a str>,
    pub gpus: Vec<&'a Gpu>,
}

impl Product<'_> {
    /// MiB that every GPU of the product has; absent where none was read.
    pub fn memory_mib(&self) -> Option<u64> {
        self.gpus.iter().filter_map(|g| g.memory_bytes).min().map(|b| b / MIB)
    }

    /// Compute capability that every GPU of the product has.
    pub fn compute_capability(&self) -> Option<(u32, u32)> {
        self.gpus.iter().filter_map(|g| g.compute_capability).min()
    }
}

/// The products of these GPUs, in the order of their names.
pub(super) fn products<'a>(gpus: impl IntoIterator<Item = &'a Gpu>) -> Vec<Product<'a>> {
    let mut by_name: BTreeMap<Option<&str>, Vec<&Gpu>> = BTreeMap::new();
    for gpu in gpus {
        by_name.entry(gpu.product.as_deref()).or_default().push(gpu);
    }
    by_name.into_iter().map(|(name, gpus)| Product { name, gpus }).collect()
}

/// The product that single-valued keys describe: a named one before an unnamed, then the one with the most GPUs, then the most
/// memory, then the first name.
pub(super) fn described<'a>(gpus: impl IntoIterator<Item = &'a Gpu>) -> Option<Product<'a>> {
    products(gpus)
        .into_iter()
        .min_by_key(|p: &Product<'a>| (p.name.is_none(), Reverse(p.gpus.len()), Reverse(p.memory_mib()), p.name))
}
