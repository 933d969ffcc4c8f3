//! A probe for one command: started, asked and ended.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::args::Machine;

/// Pause between two looks for the probe's socket.
const LOOK: Duration = Duration::from_millis(5);
/// How long a probe that was killed is waited for. One that is stuck in the kernel goes when the kernel lets it.
const REAP: Duration = Duration::from_millis(200);

/// A probe that lives as long as this.
pub struct OwnProbe {
    child: Child,
    folder: PathBuf,
}

impl OwnProbe {
    /// Starts the program that `machine` names, or the one beside this, on a socket of its own.
    pub fn start(machine: &Machine, kernel_log: Option<&Path>) -> anyhow::Result<Self> {
        let program = match &machine.probe {
            Some(program) => program.clone(),
            None => {
                let own = std::env::current_exe().context("finding this program's folder")?;
                own.with_file_name("berth-probe")
            }
        };
        let folder = std::env::temp_dir().join(format!(
            "berth-probe-{}-{:x}",
            std::process::id(),
            rand::random::<u64>()
        ));
        // Nobody else may ask it, or be it.
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("making {}", folder.display()))?;
        let option = |name: &str, value: &Path| {
            let mut option = OsString::from(format!("--{name}="));
            option.push(value);
            option
        };
        let spawned = Command::new(&program)
            .args(["serve", "--until-stdin-ends", "--log-level=error"])
            .arg(option("socket", &socket_in(&folder)))
            .arg(option("sysfs-root", &machine.sysfs_root))
            .args(machine.nvml_lib.iter().map(|path| option("nvml-lib", path)))
            .args(machine.driver_root.iter().map(|path| option("driver-root", path)))
            .args(kernel_log.map(|path| option("kernel-log", path)))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        match spawned {
            Ok(child) => Ok(Self { child, folder }),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&folder);
                Err(error).with_context(|| format!("starting {}", program.display()))
            }
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.folder)
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it does.
    pub async fn is_listening(&mut self) -> anyhow::Result<()> {
        // The file is there a little before anybody listens.
        while UnixStream::connect(self.socket()).await.is_err() {
            if let Some(status) = self.has_ended() {
                anyhow::bail!("the probe ended before it listened ({status})");
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Drop for OwnProbe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let killed = Instant::now();
        while self.has_ended().is_none() && killed.elapsed() < REAP {
            std::thread::sleep(LOOK);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("probe.sock")
}
