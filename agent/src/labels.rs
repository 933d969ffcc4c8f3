//! `labels`: the labels of this machine, without any cluster.
//!
//! ```text
//! sysfs ────────────────────────────────────────────┐
//! a berth-probe of its own ─► one inventory ─► facts ┴─► core::labels ─► stdout or a file
//! ```
//!
//! NVML is called in the probe here as well: a driver that hangs costs the deadline, and the labels are then those of PCI.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use berth_core::facts::{NodeFacts, NvmlState};
use berth_core::labels::{self, Settings, device_plugin};
use tokio::time::timeout;

use crate::args::{Labels, Output};
use crate::facts::Facts;
use crate::own_probe::OwnProbe;
use crate::probe::Probe;
use crate::sysfs;

/// Prints or writes the labels. What cannot be read is a note on stderr, and missing from the labels.
pub async fn run(args: Labels) -> anyhow::Result<()> {
    let settings = settings(&args)?;
    let facts = read(&args).await?;
    let labels = labels::labels(&facts, &settings);
    let text = render(&labels, args.output);
    match &args.output_file {
        None => std::io::stdout()
            .write_all(text.as_bytes())
            .context("writing to stdout"),
        Some(file) => replace(file, &text).with_context(|| format!("writing {}", file.display())),
    }
}

fn settings(args: &Labels) -> anyhow::Result<Settings> {
    let mut settings = match &args.device_plugin_config {
        None => Settings::default(),
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            device_plugin::parse(&text).with_context(|| file.display().to_string())?
        }
    };
    if args.timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        settings.timestamp = Some(since.context("the clock is before 1970")?.as_secs());
    }
    Ok(settings)
}

async fn read(args: &Labels) -> anyhow::Result<NodeFacts> {
    let started = Instant::now();
    let mut facts = Facts::default();
    facts.on_sysfs(sysfs::scan(&args.machine.sysfs_root).context("reading sysfs")?);
    if let Err(note) = ask_probe(args, &mut facts, started).await {
        eprintln!("berth-agent: {note:#}; the labels are those that need no NVIDIA driver");
    }
    Ok(facts.at(started.elapsed()))
}

async fn ask_probe(args: &Labels, facts: &mut Facts, started: Instant) -> anyhow::Result<()> {
    let mut own = OwnProbe::start(&args.machine, None)?;
    let answer = timeout(args.machine.deadline, async {
        own.is_listening().await?;
        Probe::new(own.socket()).inventory().await.map_err(anyhow::Error::from)
    })
    .await
    .with_context(|| format!("the probe did not answer within {} s", args.machine.deadline.as_secs()))??;
    let (inventory, vgpus) = answer.found;
    facts.on_vgpus(vgpus);
    if answer.status.state != NvmlState::Ready {
        anyhow::bail!("NVML is {}: {}", answer.status.state, answer.status.message);
    }
    facts.on_inventory(inventory, started.elapsed());
    Ok(())
}

fn render(labels: &BTreeMap<String, String>, output: Output) -> String {
    let lines = |line: fn(&str, &str) -> String| labels.iter().map(|(k, v)| line(k, v)).collect::<String>();
    match output {
        Output::Json => serde_json::to_string_pretty(labels).expect("strings alone") + "\n",
        Output::Yaml if labels.is_empty() => "{}\n".into(),
        // A number or true would be no string without quotes; keys need none.
        Output::Yaml => lines(|key, value| format!("{key}: \"{value}\"\n")),
        Output::FeaturesD => lines(|key, value| format!("{key}={value}\n")),
    }
}

/// By rename, from a name with a dot, which node feature discovery does not read.
fn replace(file: &Path, text: &str) -> std::io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let partial = file.with_file_name(format!(".{name}.partial"));
    std::fs::write(&partial, text)?;
    std::fs::rename(&partial, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_labels_in_each_format() {
        let labels = BTreeMap::from([
            ("nvidia.com/cuda.driver.rev".to_owned(), String::new()),
            ("nvidia.com/gpu.count".to_owned(), "8".to_owned()),
        ]);
        for (output, want) in [
            (
                Output::Json,
                "{\n  \"nvidia.com/cuda.driver.rev\": \"\",\n  \"nvidia.com/gpu.count\": \"8\"\n}\n",
            ),
            (
                Output::Yaml,
                "nvidia.com/cuda.driver.rev: \"\"\nnvidia.com/gpu.count: \"8\"\n",
            ),
            (
                Output::FeaturesD,
                "nvidia.com/cuda.driver.rev=\nnvidia.com/gpu.count=8\n",
            ),
        ] {
            assert_eq!(render(&labels, output), want);
        }
        for (output, want) in [(Output::Json, "{}\n"), (Output::Yaml, "{}\n"), (Output::FeaturesD, "")] {
            assert_eq!(render(&BTreeMap::new(), output), want);
        }
    }

    /// What node feature discovery makes of a file in its folder features.d: lines of key=value, `#` for comments and directives, blanks
    /// around a line go, a key alone is true. It reads no file above 64 KiB.
    fn as_node_feature_discovery_reads(text: &str) -> BTreeMap<String, String> {
        assert!(text.len() <= 65536);
        text.split('\n')
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let (key, value) = line.split_once('=').unwrap_or((line, "true"));
                (key.to_owned(), value.to_owned())
            })
            .collect()
    }

    #[test]
    fn node_feature_discovery_reads_the_same_labels() {
        let gpu = |index: u32| berth_core::facts::Gpu {
            index,
            uuid: format!("GPU-{index}"),
            product: Some(" #NVIDIA = H100 (tm) ".into()),
            mig: Some(berth_core::facts::Mig::default()),
            ..berth_core::facts::Gpu::default()
        };
        let facts = NodeFacts {
            machine: Some("=\n# +no-label".into()),
            driver: Some(berth_core::facts::NvidiaDriver {
                version: "575.57".into(),
                cuda_version: Some(12090),
                nvml_version: None,
                excluded_gpus: None,
            }),
            gpus: (0..8).map(gpu).collect(),
            ..NodeFacts::default()
        };
        let labels = labels::labels(&facts, &Settings::default());
        assert_eq!(labels["nvidia.com/cuda.driver.rev"], "", "an empty value is one");
        assert_eq!(
            as_node_feature_discovery_reads(&render(&labels, Output::FeaturesD)),
            labels
        );
    }
}
