//! The configuration of NVIDIA's device plugin, as somebody wrote it into a ConfigMap.

use std::collections::BTreeMap;

use berth_core::facts::{Gpu, Mig, MigDevice, NodeFacts};
use berth_core::labels::device_plugin::{parse, select};

use crate::labels;

/// `data` is one configuration.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let settings = match parse(&text) {
        Ok(settings) => settings,
        Err(error) => {
            // It is logged and shown on objects.
            assert!(error.to_string().lines().count() <= 1, "{error}");
            return;
        }
    };
    assert!(settings.replicated.len() <= text.len());
    labels::check_with(&node(), &settings);
    let data = BTreeMap::from([(text.clone(), text.clone())]);
    assert_eq!(select(&data, None), Ok(Some(text.as_str())));
}

fn node() -> NodeFacts {
    let gpu = |index: u32, profile: &str| Gpu {
        index,
        uuid: format!("GPU-{index}"),
        product: Some("NVIDIA H100 80GB HBM3".into()),
        memory_bytes: Some(80 << 30),
        mig: Some(Mig {
            enabled: !profile.is_empty(),
            pending: false,
            devices: (0..2)
                .map(|n| MigDevice {
                    uuid: format!("MIG-{index}-{n}"),
                    profile: profile.into(),
                    ..MigDevice::default()
                })
                .collect(),
        }),
        ..Gpu::default()
    };
    NodeFacts {
        gpus: vec![gpu(0, "1g.10gb"), gpu(1, "3g.40gb"), gpu(2, "")],
        ..NodeFacts::default()
    }
}
