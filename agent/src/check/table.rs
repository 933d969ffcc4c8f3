//! The report for people: the verdict, what is wrong, then every check.

use std::fmt::Write as _;

use berth_core::health::GpuState;

use super::report::{NOT_SUPPORTED, OfCheck, OfGpu, OfSlice, Report, Verdict};

/// The whole text.
pub fn of(report: &Report) -> String {
    let mut text = headline(report) + "\n";
    for gpu in &report.gpus {
        if !gpu.reason.is_empty() {
            let _ = writeln!(text, "  {}: {}: {}", short_name(gpu), gpu.reason, gpu.message);
        }
        for slice in gpu.mig.iter().filter(|slice| is_ill_alone(gpu, slice)) {
            let _ = writeln!(
                text,
                "  {} MIG {} {}: {}: {}",
                short_name(gpu),
                slice.profile,
                slice.uuid,
                slice.reason,
                slice.message
            );
        }
    }
    for function in &report.pci {
        for check in function.checks.iter().filter(|c| !c.reason.is_empty()) {
            let _ = writeln!(text, "  {}: {}: {}", function.pci_address, check.reason, check.message);
        }
    }
    if !report.node.is_empty() {
        let driver = report.driver.as_deref().unwrap_or("unknown");
        let cuda = report.cuda.as_deref().unwrap_or("unknown");
        let _ = writeln!(text, "\nNode\n  driver {driver}, CUDA {cuda}");
        put_checks(&mut text, &report.node);
    }
    for gpu in &report.gpus {
        let product = gpu.product.as_deref().unwrap_or("unknown product");
        let address = gpu.pci_address.as_deref().unwrap_or("unknown address");
        let _ = writeln!(
            text,
            "\n{}: {}\n  {product}, {address}, {}",
            short_name(gpu),
            state(gpu.state),
            gpu.uuid
        );
        put_checks(&mut text, &gpu.checks);
        for slice in &gpu.mig {
            let own = match is_ill_alone(gpu, slice) {
                true => state(slice.state),
                false => "as its GPU",
            };
            let _ = writeln!(text, "  MIG {:<15} {}, {own}", slice.profile, slice.uuid);
        }
    }
    for function in &report.pci {
        let driver = function.driver.as_deref().unwrap_or("none");
        let _ = writeln!(
            text,
            "\n{}: by PCI alone\n  id {}, driver {driver}",
            function.pci_address, function.id
        );
        put_checks(&mut text, &function.checks);
    }
    text
}

fn headline(report: &Report) -> String {
    let all = report.gpus.len();
    let of_gpus = |is: fn(GpuState) -> bool| report.gpus.iter().filter(|gpu| is(gpu.state)).count();
    let of_slices = |is: fn(GpuState) -> bool| {
        let slices = report.gpus.iter().flat_map(|gpu| gpu.mig.iter().map(move |s| (gpu, s)));
        match slices.filter(|(gpu, s)| is_ill_alone(gpu, s) && is(s.state)).count() {
            0 => String::new(),
            n => format!(" and {n} MIG slice(s)"),
        }
    };
    let is_ill = |state| matches!(state, GpuState::Unhealthy | GpuState::Verifying);
    let is_suspect = |state| state == GpuState::Suspect;
    let nvml = match report.message.as_str() {
        "" => format!("NVML is {}", report.nvml),
        message => format!("NVML is {}: {message}", report.nvml),
    };
    match report.verdict {
        Verdict::NoGpu => "No GPU here.".into(),
        Verdict::Healthy if all == 0 => format!("Healthy: {} GPU(s), by PCI alone.", report.pci.len()),
        Verdict::Healthy => format!("Healthy: {all} GPU(s)."),
        Verdict::Suspect if all == 0 => "Suspect.".into(),
        Verdict::Suspect => format!(
            "Suspect: {} of {all} GPU(s){} to be watched.",
            of_gpus(is_suspect),
            of_slices(is_suspect)
        ),
        Verdict::Unknown => format!("Unknown: {nvml}."),
        Verdict::Unhealthy if report.nvml != "Ready" => format!("Unhealthy: {nvml}."),
        Verdict::Unhealthy => {
            let missing = match report.missing_gpus {
                0 => String::new(),
                n => format!("; {n} missing"),
            };
            format!(
                "Unhealthy: {} of {all} GPU(s){} not to be used{missing}.",
                of_gpus(is_ill),
                of_slices(is_ill)
            )
        }
    }
}

/// Whether a slice is worse than its GPU.
fn is_ill_alone(gpu: &OfGpu, slice: &OfSlice) -> bool {
    slice.state > gpu.state
}

fn short_name(gpu: &OfGpu) -> String {
    match gpu.index {
        Some(index) => format!("GPU {index}"),
        None => gpu.uuid.clone(),
    }
}

fn state(state: GpuState) -> &'static str {
    match state {
        GpuState::Healthy => "healthy",
        GpuState::Suspect => "suspect",
        GpuState::Verifying => "verifying",
        GpuState::Unhealthy => "unhealthy",
    }
}

/// One line each; those that the part does not have in one line together.
fn put_checks(text: &mut String, checks: &[OfCheck]) {
    for check in checks.iter().filter(|c| c.outcome != NOT_SUPPORTED) {
        let said = [check.reading.as_str(), check.message.as_str()];
        let said = said
            .into_iter()
            .filter(|s| !s.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
        let line = format!("  {:<21} {:<10} {said}", check.check, check.outcome);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let absent: Vec<&str> = checks
        .iter()
        .filter(|c| c.outcome == NOT_SUPPORTED)
        .map(|c| c.check)
        .collect();
    if !absent.is_empty() {
        let _ = writeln!(text, "  {NOT_SUPPORTED}: {}", absent.join(", "));
    }
}
