//! The PCI configuration space of a function that may be a virtual GPU.

/// `data` is a configuration space, or as much of it as could be read.
pub fn run(data: &[u8]) {
    let Some(host) = berth_core::vgpu::read(data) else {
        return;
    };
    assert!(data.len() >= berth_core::vgpu::CONFIG_BYTES);
    // Ten bytes each; one that is no text becomes three.
    for text in [host.version, host.branch].into_iter().flatten() {
        assert!(!text.is_empty() && text.len() <= 30, "{text:?}");
    }
}
