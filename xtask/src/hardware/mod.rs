//! `cargo xtask hardware`: what Berth reads of this machine's NVIDIA GPUs against what `nvidia-smi -q -x` says, and how long each NVML call took.
//!
//! ```text
//! berth-agent labels, berth-agent check (RUST_LOG: each call) ─┐
//! nvidia-smi -q -x, or its recorded output ─► smi ─────────────┴─► compare, calls ─► table
//! ```

mod calls;
mod compare;
mod smi;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Arguments of `hardware`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recorded output of `nvidia-smi -q -x`. Default: ask nvidia-smi.
    #[arg(long, value_name = "FILE")]
    xml: Option<PathBuf>,
    /// Default: the berth-agent beside this program, with a berth-probe beside it.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Exactly this libnvidia-ml.so.1 and no search.
    #[arg(long, value_name = "PATH")]
    nvml_lib: Option<PathBuf>,
    /// Another /sys.
    #[arg(long, value_name = "DIR")]
    sysfs_root: Option<PathBuf>,
    /// Write the tables into docs/hardware.md.
    #[arg(long)]
    write: bool,
}

/// What the agent's own commands print.
struct Ours {
    labels: BTreeMap<String, String>,
    check: Value,
    log: String,
}

/// Prints both tables. Fails where a field differs.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let ours = ask_agent(args)?;
    if let Some(why) = unread(&ours.check) {
        bail!("nothing to compare: {why}");
    }
    let theirs = smi::parse(&match &args.xml {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => output(Command::new("nvidia-smi").args(["-q", "-x"]), &[0])?.0,
    })?;
    let rows = compare::rows(&ours.labels, &ours.check, &theirs);
    let text = format!("{}\n{}", compare::table(&rows), calls::table(&ours.log));
    say!("{text}");
    if args.write {
        let path = berth_local::checkout().join("docs/hardware.md");
        let page = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        std::fs::write(&path, replaced(&page, &text)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let different = rows.iter().filter(|row| row.differs()).count();
    ensure!(different == 0, "{different} of {} fields differ", rows.len());
    Ok(())
}

fn ask_agent(args: &Args) -> anyhow::Result<Ours> {
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => std::env::current_exe()
            .context("cannot find this program's own folder")?
            .with_file_name("berth-agent"),
    };
    let command = |name: &str| {
        let mut command = Command::new(&agent);
        command.args([name, "-o", "json"]);
        for (option, value) in [("--nvml-lib", &args.nvml_lib), ("--sysfs-root", &args.sysfs_root)] {
            if let Some(value) = value {
                command.arg(option).arg(value);
            }
        }
        // The probe hands it on, and tells of each call.
        command.env("RUST_LOG", calls::LOG);
        command
    };
    let (labels, first) = output(&mut command("labels"), &[0])?;
    // A GPU that is not healthy is no reason not to compare; 3 is that nobody could tell.
    let (check, second) = output(&mut command("check"), &[0, 1, 2])?;
    Ok(Ours {
        labels: serde_json::from_str(&labels).context("berth-agent labels printed no JSON")?,
        check: serde_json::from_str(&check).context("berth-agent check printed no JSON")?,
        log: first + &second,
    })
}

/// Why NVML told the agent nothing, in its own words, where it did not.
fn unread(check: &Value) -> Option<String> {
    let text = |name: &str| check[name].as_str().unwrap_or("not told");
    (text("nvml") != "Ready").then(|| format!("NVML is {}: {}", text("nvml"), text("message")))
}

/// Standard output and error of a command that ends with one of these codes.
fn output(command: &mut Command, codes: &[i32]) -> anyhow::Result<(String, String)> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let [out, notes] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    if !output.status.code().is_some_and(|code| codes.contains(&code)) {
        bail!("{command:?}: {}\n{notes}", output.status);
    }
    Ok((out, notes))
}

const BEGIN: &str = "<!-- hardware -->\n";
const END: &str = "<!-- end -->";

/// The page with the part between the marks replaced.
fn replaced(page: &str, text: &str) -> anyhow::Result<String> {
    let marks = "docs/hardware.md has no marks <!-- hardware --> and <!-- end -->";
    let (head, rest) = page.split_once(BEGIN).context(marks)?;
    let (_, tail) = rest.split_once(END).context(marks)?;
    Ok(format!("{head}{BEGIN}{text}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    const PAGE: &str = include_str!("../../../docs/hardware.md");

    /// C names of the calls in the sources below `folder`.
    fn calls_in(folder: &Path, calls: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                calls_in(&path, calls);
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            for word in source.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                let verbs = [
                    "nvmlDeviceGet",
                    "nvmlDeviceRegister",
                    "nvmlDeviceValidate",
                    "nvmlSystemGet",
                    "nvmlEventSet",
                    "nvmlSystemEventSet",
                    "nvmlSystemRegister",
                    "nvmlGetExcluded",
                    "nvmlGpmQuery",
                    "nvmlGpmSample",
                    "nvmlGpmMigSample",
                    "nvmlGpmMetricsGet",
                ];
                if verbs.iter().any(|verb| word.starts_with(verb)) && !word.ends_with("_t") {
                    calls.insert(word.to_owned());
                }
            }
        }
    }

    #[test]
    fn the_page_has_every_call_that_the_probe_makes() {
        let mut calls = BTreeSet::new();
        calls_in(&berth_local::checkout().join("probe/src"), &mut calls);
        assert!(calls.len() > 30, "the sources were not understood: {calls:?}");
        for call in calls {
            assert!(PAGE.contains(&format!("`{call}`")), "{call} is not in docs/hardware.md");
        }
    }

    #[test]
    fn a_machine_of_which_nothing_is_read_says_why() {
        let check = |state| serde_json::json!({"nvml": state, "message": "no library"});
        assert_eq!(super::unread(&check("Ready")), None);
        assert_eq!(
            super::unread(&check("NoLibrary")).unwrap(),
            "NVML is NoLibrary: no library"
        );
        assert!(super::unread(&serde_json::json!({})).is_some());
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = super::replaced(PAGE, "new\n").unwrap();
        assert!(page.contains("<!-- hardware -->\nnew\n<!-- end -->"));
    }
}
