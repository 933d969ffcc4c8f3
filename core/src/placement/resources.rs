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
            // A name is copied only where it is new: this runs once a pod in every round of placement.
            match self.0.get_mut(name) {
                Some(entry) => *entry = entry.saturating_add(*amount),
                None => drop(self.0.insert(name.clone(), *amount)),
            }
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

/// Whether a resource stands for GPUs or slices of them, as the vendors' device plugins name them.
pub fn is_gpu(resource: &str) -> bool {
    matches!(
        resource,
        "nvidia.com/gpu" | "nvidia.com/gpu.shared" | "amd.com/gpu" | "gpu.intel.com/i915" | "gpu.intel.com/xe"
    ) || is_mig(resource)
}

/// Whether a resource stands for MIG slices of one profile, as NVIDIA's device plugin names them with its strategy `mixed`.
pub fn is_mig(resource: &str) -> bool {
    resource.starts_with(MIG_PREFIX)
}

/// Resource of the MIG slices of a profile: `1g.10gb` → `nvidia.com/mig-1g.10gb`, `1g.10gb+me` → `nvidia.com/mig-1g.10gb.me`.
/// `None`: it is no profile. The grammar is that of the driver's names: `[<c>c.]<g>g.<n>gb` and attributes after `+` (`+me`,
/// `+me.all`, `+gfx`), also `-me`.
pub fn mig_resource(profile: &str) -> Option<String> {
    let is_number = |text: &str, last: char| {
        let digits = text.strip_suffix(last).unwrap_or_default();
        (1..=4).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let end = profile.find(['+', '-']).unwrap_or(profile.len());
    let (slices, attribute) = profile.split_at(end);
    let is_attribute = |text: &str| {
        let word = |w: &str| !w.is_empty() && w.len() <= 8 && w.bytes().all(|b| b.is_ascii_lowercase());
        text.split('.').count() <= 2 && text.split('.').all(word)
    };
    let parts: Vec<&str> = slices.split('.').collect();
    let (compute, rest) = match parts.as_slice() {
        [compute, rest @ ..] if rest.len() == 2 => (Some(*compute), rest),
        rest => (None, rest),
    };
    let [gpu, memory] = rest else { return None };
    let valid = compute.is_none_or(|c| is_number(c, 'c'))
        && is_number(gpu, 'g')
        && memory.strip_suffix('b').is_some_and(|m| is_number(m, 'g'))
        && (attribute.is_empty() || is_attribute(&attribute[1..]));
    // The plugin writes the driver's `+` as a dot, which a resource name may hold; `-` stays.
    valid.then(|| format!("{MIG_PREFIX}{}", profile.replace('+', ".")))
}

/// Memory of one slice by its name, in bytes: a slice has it to itself, so this is what is free when it is handed out. NVIDIA rounds the
/// number in the name up, to whole GiB.
pub fn mig_memory(resource: &str) -> Option<u64> {
    let profile = resource.strip_prefix(MIG_PREFIX)?;
    let gb = profile.split(['.', '-']).find_map(|part| part.strip_suffix("gb"))?;
    Some(gb.parse::<u64>().ok()?.saturating_mul(1 << 30))
}

const MIG_PREFIX: &str = "nvidia.com/mig-";

/// An amount of a resource for people: `24Gi` of memory, `1.5` of cpu, `2` of anything that is counted.
pub fn amount(resource: &str, milli: i64) -> String {
    match resource {
        "memory" | "ephemeral-storage" => bytes(u64::try_from(milli / 1000).unwrap_or(0)),
        _ if resource.starts_with("hugepages-") => bytes(u64::try_from(milli / 1000).unwrap_or(0)),
        _ if milli % 1000 == 0 => (milli / 1000).to_string(),
        _ => format!("{milli}m"),
    }
}

/// Bytes with a binary suffix and at most one decimal, rounded down so that what is short never looks enough.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    for (size, unit) in UNITS {
        if bytes >= size {
            let tenths = u128::from(bytes) * 10 / u128::from(size);
            return match tenths % 10 {
                0 => format!("{}{unit}", tenths / 10),
                rest => format!("{}.{rest}{unit}", tenths / 10),
            };
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_as_people_write_them() {
        for (resource, milli, want) in [
            ("cpu", 1500, "1500m"),
            ("cpu", 2000, "2"),
            ("nvidia.com/gpu", 3000, "3"),
            ("memory", 24 * 1024 * 1024 * 1024 * 1000, "24Gi"),
            ("memory", 12_026_116_506_000, "11.2Gi"),
            ("ephemeral-storage", 512_000, "512"),
            ("memory", -5000, "0"),
        ] {
            assert_eq!(amount(resource, milli), want, "{milli} of {resource}");
        }
    }

    #[test]
    fn profiles_become_the_names_of_the_device_plugin() {
        for (profile, want) in [
            ("1g.10gb", Some("nvidia.com/mig-1g.10gb")),
            ("7g.141gb", Some("nvidia.com/mig-7g.141gb")),
            ("1g.10gb+me", Some("nvidia.com/mig-1g.10gb.me")),
            ("1g.24gb+me.all", Some("nvidia.com/mig-1g.24gb.me.all")),
            ("1g.24gb-me", Some("nvidia.com/mig-1g.24gb-me")),
            ("1c.3g.40gb", Some("nvidia.com/mig-1c.3g.40gb")),
            ("", None),
            ("h100", None),
            ("1g", None),
            ("1g.10GB", None),
            ("0g.10gb", None),
            ("1g.10gb+", None),
            ("1g.10gb+me/../x", None),
            ("g.gb", None),
            ("nvidia.com/mig-1g.10gb", None),
            ("1g.10gb.me", None),
        ] {
            assert_eq!(mig_resource(profile).as_deref(), want, "{profile}");
        }
        assert_eq!(mig_memory("nvidia.com/mig-1c.3g.40gb.me"), Some(40 << 30));
        assert_eq!(mig_memory("nvidia.com/gpu"), None);
    }

    #[test]
    fn gpus_are_told_from_other_resources() {
        for name in [
            "nvidia.com/gpu",
            "nvidia.com/mig-1g.10gb",
            "nvidia.com/gpu.shared",
            "amd.com/gpu",
        ] {
            assert!(is_gpu(name), "{name}");
        }
        for name in ["cpu", "nvidia.com/gpumem", "rdma/ib", "example.com/gpu"] {
            assert!(!is_gpu(name), "{name}");
        }
    }
}
