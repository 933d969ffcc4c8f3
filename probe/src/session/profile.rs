//! The name of a MIG profile.

/// What a profile's name is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Slices of the GPU instance.
    pub gpu_slices: u32,
    /// Slices of the compute instance.
    pub compute_slices: u32,
    /// Memory of the instance in MiB.
    pub memory_mib: u64,
    /// Memory of the whole GPU in bytes.
    pub total_bytes: u64,
}

/// The profile as NVIDIA writes it: `1g.10gb`, `1c.3g.40gb`, `1g.10gb+me`.
///
/// Newer drivers end the device's name with it. For the others it is put together: the memory part is the instance's share of the GPU,
/// rounded up to eighths, of the GPU's size in GiB.
pub fn profile(device_name: &str, shape: Shape) -> String {
    if let Some((_, profile)) = device_name.rsplit_once(" MIG ")
        && profile.starts_with(|c: char| c.is_ascii_digit())
    {
        return profile.trim().to_owned();
    }
    let compute = if shape.compute_slices == shape.gpu_slices || shape.compute_slices == 0 {
        String::new()
    } else {
        format!("{}c.", shape.compute_slices)
    };
    format!("{compute}{}g.{}gb", shape.gpu_slices, memory_gb(shape))
}

fn memory_gb(shape: Shape) -> u64 {
    let total_gib = shape.total_bytes.div_ceil(1 << 30);
    if shape.total_bytes == 0 {
        return shape.memory_mib.div_ceil(1024);
    }
    let eighths = (u128::from(shape.memory_mib) << 20)
        .saturating_mul(8)
        .div_ceil(u128::from(shape.total_bytes));
    // Half rounds up: (eighths × total / 8) to the nearest whole number.
    u64::try_from((eighths * u128::from(total_gib) * 2 + 8) / 16).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let shape = |gpu_slices, compute_slices, memory_mib, total_gib: u64| Shape {
            gpu_slices,
            compute_slices,
            memory_mib,
            total_bytes: total_gib << 30,
        };
        for (name, shape, expected) in [
            (
                "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me",
                shape(1, 1, 9984, 80),
                "1g.10gb+me",
            ),
            ("NVIDIA A100-SXM4-40GB", shape(1, 1, 4864, 40), "1g.5gb"),
            ("NVIDIA A100-SXM4-40GB", shape(2, 2, 9856, 40), "2g.10gb"),
            ("NVIDIA A100-SXM4-40GB", shape(3, 3, 19968, 40), "3g.20gb"),
            ("NVIDIA A100-SXM4-40GB", shape(3, 1, 19968, 40), "1c.3g.20gb"),
            ("NVIDIA A100-SXM4-40GB", shape(7, 7, 40192, 40), "7g.40gb"),
            ("NVIDIA H100 80GB HBM3", shape(1, 1, 20096, 80), "1g.20gb"),
            ("NVIDIA H100 80GB HBM3", shape(4, 4, 40448, 80), "4g.40gb"),
            ("", shape(1, 1, 9984, 0), "1g.10gb"),
        ] {
            assert_eq!(profile(name, shape), expected);
        }
    }
}
