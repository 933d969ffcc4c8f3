//! What runs on nodes, on arm64: agent and probe are built for it, and on simulated machines they say what those of this machine say.
//!
//! ```text
//! machines ─┬─► berth-agent labels, check ────────────────────────┬─► compared: output and exit code
//!           └─► the same programs and fake NVML for arm64, by qemu ┘
//! ```
//!
//! How the compiler is told of the linker is here and not in `.cargo/config.toml`, since on an arm64 machine the names there would be others'.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use nvidia_ml::models::{PCI_CLASS, PCI_VENDOR};
use nvidia_ml::state::{Effect, Fault, RemappedRows, STATE_ENV, State, code};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: (&str, &str) = ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
/// Runs a program for arm64 with the C library that came with that linker.
const QEMU: [&str; 3] = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"];
/// The controller builds like the rest, and takes longer than all of this.
const PACKAGES: [&str; 3] = ["berth-agent", "berth-probe", "berth-fake-nvml"];

/// Seconds for a download; without a route there may be no answer at all.
const PATIENCE: &str = "180";
/// Seconds that the agent waits for the probe: emulated, on a busy machine, it is slow.
const DEADLINE: &str = "--deadline=120";

/// How often arm64 may be asked.
const TRIES: u32 = 3;

/// Builds both, and compares. Not to be able to is an error here.
pub fn run() -> anyhow::Result<()> {
    // As everywhere, so that nothing is compiled twice.
    crate::test::cargo(&["build", "--workspace"], &[])?;
    match compare()? {
        None => Ok(()),
        Some(why) => bail!("not checked: {why}"),
    }
}

/// Builds for arm64, and compares with this machine's programs, which are built. `Some`: why nothing could be checked.
pub fn compare() -> anyhow::Result<Option<String>> {
    if std::env::consts::ARCH == "aarch64" {
        say!("this machine is one: all other tests are tests of it");
        return Ok(None);
    }
    if let Err(why) = crate::machine::ensure_arm64().and_then(|()| ensure_target()) {
        let why = format!("{why:#}");
        say!("NOT CHECKED: {why}");
        return Ok(Some(why));
    }
    let mut build = crate::test::command(&["build", "--target", TARGET])?;
    for package in PACKAGES {
        build.args(["-p", package]);
    }
    let status = build.env(LINKER.0, LINKER.1).status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo build --target {TARGET}: {status}");
    let native = crate::test::programs()?;
    let target = native.parent().context("the programs are in no folder")?;
    let folder = target.join("arm64");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let emulated = target.join(TARGET).join("debug");
    let here = Programs::here(&native);
    let arm64 = Programs::emulated(&emulated, &folder.join("probe"))?;
    for machine in machines()? {
        let folder = folder.join(machine.name);
        machine.place(&folder)?;
        for (command, code) in [("labels", 0), ("check", machine.verdict)] {
            let what = format!("{}, {command}", machine.name);
            let said = here.ask(command, &machine, &folder)?;
            ensure!(said.code == Some(code), "{what}: {said}");
            same(&said, || arm64.ask(command, &machine, &folder)).with_context(|| what.clone())?;
            say!("{what}: the same {} lines", said.out.lines().count());
        }
    }
    Ok(None)
}

/// That arm64 says the same in the end: `check` gives events a moment to come, in which an emulator may not have got to them.
fn same(here: &Said, ask: impl Fn() -> anyhow::Result<Said>) -> anyhow::Result<()> {
    for _ in 1..TRIES {
        if difference(here, &ask()?).is_none() {
            return Ok(());
        }
    }
    match difference(here, &ask()?) {
        None => Ok(()),
        Some(difference) => bail!(difference),
    }
}

/// The standard library for arm64, from where Rust came from.
fn ensure_target() -> anyhow::Result<()> {
    let mut rustc = Command::new("rustc");
    let printed = rustc.args(["--print", "target-libdir", "--target", TARGET]).output();
    let libraries = printed.context("cannot run rustc")?.stdout;
    if Path::new(String::from_utf8_lossy(&libraries).trim()).is_dir() {
        return Ok(());
    }
    let mut rustup = Command::new("timeout");
    let status = rustup.args([PATIENCE, "rustup", "target", "add", TARGET]).status();
    let status = status.context("cannot run timeout")?;
    ensure!(status.success(), "rustup target add {TARGET}: {status}");
    Ok(())
}

/// Agent, probe and fake library of one architecture.
struct Programs {
    agent: Vec<PathBuf>,
    probe: PathBuf,
    library: PathBuf,
}

impl Programs {
    fn here(folder: &Path) -> Self {
        Self {
            agent: vec![folder.join("berth-agent")],
            probe: folder.join("berth-probe"),
            library: folder.join("libnvidia_ml.so"),
        }
    }

    /// The agent starts the probe, which only qemu can run: by a script in its place.
    fn emulated(folder: &Path, probe: &Path) -> anyhow::Result<Self> {
        let here = Self::here(folder);
        let script = format!("#!/bin/sh\nexec {} '{}' \"$@\"\n", QEMU.join(" "), here.probe.display());
        write(probe, &script)?;
        std::fs::set_permissions(probe, PermissionsExt::from_mode(0o755)).context("cannot make a script executable")?;
        Ok(Self {
            agent: QEMU.map(PathBuf::from).into_iter().chain(here.agent).collect(),
            probe: probe.to_path_buf(),
            library: here.library,
        })
    }

    fn ask(&self, command: &str, machine: &Machine, folder: &Path) -> anyhow::Result<Said> {
        let (program, args) = self.agent.split_first().context("no program")?;
        let mut agent = Command::new(program);
        agent.args(args).args([command, "-o", "json", DEADLINE]);
        let file = |option: &str, path: &Path| format!("--{option}={}", path.display());
        agent.args([
            file("nvml-lib", &self.library),
            file("sysfs-root", &folder.join("sys")),
            file("probe", &self.probe),
        ]);
        match command {
            "check" => agent.arg(file("kernel-log", &folder.join("kmsg"))),
            _ if machine.plugin.is_empty() => &mut agent,
            _ => agent.arg(file("device-plugin-config", &folder.join("plugin.yaml"))),
        };
        let output = agent.env(STATE_ENV, folder.join("nvml.json")).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said {
            code: output.status.code(),
            out: text(&output.stdout),
            notes: text(&output.stderr),
        })
    }
}

/// What a command came to. `code` is absent where a signal ended it.
#[derive(Debug, Clone)]
struct Said {
    code: Option<i32>,
    out: String,
    notes: String,
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {:?}\n{}{}", self.code, self.out, self.notes)
    }
}

/// The first line that differs, or the codes; notes are for people and may name files.
fn difference(here: &Said, arm64: &Said) -> Option<String> {
    let (mut here_lines, mut arm64_lines) = (here.out.lines(), arm64.out.lines());
    let lines = std::iter::from_fn(|| match (here_lines.next(), arm64_lines.next()) {
        (None, None) => None,
        pair => Some(pair),
    });
    let line = lines.into_iter().find(|(here, arm64)| here != arm64);
    let what = match line {
        Some((here, arm64)) => {
            let [here, arm64] = [here, arm64].map(|line| line.unwrap_or("nothing").trim().to_owned());
            format!("{here} here, {arm64} on arm64")
        }
        None if here.code != arm64.code => format!("code {:?} here, {:?} on arm64", here.code, arm64.code),
        None => return None,
    };
    Some(format!("{what}\n{}", arm64.notes))
}

/// A simulated machine.
struct Machine {
    name: &'static str,
    state: State,
    /// Configuration of the device plugin; empty: none.
    plugin: &'static str,
    kernel_log: &'static str,
    /// Exit code of `check`.
    verdict: i32,
}

/// Strings, 64-bit numbers, structs with versions, unions of values, events and errors of NVML come by.
fn machines() -> anyhow::Result<[Machine; 3]> {
    let fabric = State::of("GB200", 4, "fabric")?;

    let mut mig = State::of("H100-80GB-HBM3", 2, "mig")?;
    for gpu in &mut mig.gpus {
        gpu.enable_mig(&["3g.40gb", "1g.10gb"])?;
    }

    let mut ill = State::of("A100-SXM4-40GB", 4, "ill")?;
    ill.gpus[0].checks.ecc_uncorrected_volatile = Some(u64::from(u32::MAX) + 2);
    ill.gpus[1].checks.remapped_rows = Some(RemappedRows {
        pending: true,
        ..RemappedRows::default()
    });
    ill.faults.push(Fault {
        function: "nvmlDeviceGetUtilizationRates".into(),
        ..Fault::of_gpu(3, Effect::Error(code::GPU_IS_LOST))
    });
    Ok([
        Machine {
            name: "fabric",
            state: fabric,
            plugin: "",
            kernel_log: "",
            verdict: 0,
        },
        Machine {
            name: "mig",
            state: mig,
            plugin: "version: v1\nflags: {migStrategy: mixed}\n",
            kernel_log: "",
            verdict: 0,
        },
        Machine {
            name: "ill",
            state: ill,
            plugin: "",
            kernel_log: "4,1,1,-;NVRM: Xid (PCI:0000:12:00): 79, GPU has fallen off the bus.\n",
            verdict: 2,
        },
    ])
}

impl Machine {
    /// Writes its /sys, the state of its driver and the rest.
    fn place(&self, folder: &Path) -> anyhow::Result<()> {
        write(&folder.join("kmsg"), self.kernel_log)?;
        write(&folder.join("plugin.yaml"), self.plugin)?;
        write(&folder.join("sys/class/dmi/id/product_name"), "Standard PC\n")?;
        let driver = folder.join("sys/bus/pci/drivers/nvidia");
        std::fs::create_dir_all(&driver).with_context(|| format!("cannot make {}", driver.display()))?;
        for gpu in &self.state.gpus {
            let function = folder.join("sys/bus/pci/devices").join(&gpu.pci_address);
            write(&function.join("class"), &format!("{PCI_CLASS:#08x}\n"))?;
            write(&function.join("vendor"), &format!("{PCI_VENDOR:#06x}\n"))?;
            write(&function.join("device"), &format!("{:#06x}\n", gpu.pci_device))?;
            symlink("../../drivers/nvidia", function.join("driver")).context("cannot link a driver")?;
        }
        let state = folder.join("nvml.json");
        self.state
            .write(&state)
            .with_context(|| format!("cannot write {}", state.display()))
    }
}

/// Writes a file and the folders that it is in.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let folder = file.parent().context("a file in no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: i32, out: &str) -> Said {
        Said {
            code: Some(code),
            out: out.into(),
            notes: "a note\n".into(),
        }
    }

    #[test]
    fn what_differs_is_named() {
        let here = said(0, "{\n  \"a\": \"1\"\n}\n");
        assert_eq!(difference(&here, &here.clone()), None);
        for (arm64, want) in [
            (
                said(0, "{\n  \"a\": \"2\"\n}\n"),
                "\"a\": \"1\" here, \"a\": \"2\" on arm64\na note\n",
            ),
            (said(0, ""), "{ here, nothing on arm64\na note\n"),
            (
                said(0, "{\n  \"a\": \"1\"\n}\nmore\n"),
                "nothing here, more on arm64\na note\n",
            ),
            (said(1, &here.out), "code Some(0) here, Some(1) on arm64\na note\n"),
            (
                Said {
                    code: None,
                    ..here.clone()
                },
                "code Some(0) here, None on arm64\na note\n",
            ),
        ] {
            assert_eq!(difference(&here, &arm64).as_deref(), Some(want));
        }
    }

    #[test]
    fn what_differs_once_may_be_slow_and_what_differs_always_is_wrong() {
        let (here, other) = (said(0, "a"), said(0, "b"));
        let asked = std::cell::Cell::new(0);
        let slow = || {
            asked.set(asked.get() + 1);
            Ok(if asked.get() < TRIES {
                other.clone()
            } else {
                here.clone()
            })
        };
        assert!(same(&here, slow).is_ok());
        assert_eq!(asked.get(), TRIES);
        assert!(same(&here, || Ok(other.clone())).is_err());
        assert!(same(&here, || bail!("no qemu")).is_err());
    }

    #[test]
    fn every_machine_can_be_placed() {
        let base = tempfile::tempdir().unwrap();
        for machine in machines().unwrap() {
            let folder = base.path().join(machine.name);
            machine.place(&folder).unwrap();
            assert_eq!(State::read(&folder.join("nvml.json")).unwrap(), machine.state);
        }
    }
}
