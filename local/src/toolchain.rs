//! The programs of a cluster: the control plane, built from Go modules into a cache outside the checkout, and our own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::error::{Error, Result};
use crate::files;
use crate::progress::Progress;

/// Kubernetes version that is built; `local/controlplane/go.mod` names the modules.
pub const KUBERNETES_VERSION: &str = "v1.36.3";
/// Minor versions of Kubernetes 1 that Berth works with.
pub const KUBERNETES_MINORS: std::ops::RangeInclusive<u32> = 33..=37;

/// A program of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Tool {
    Etcd,
    KubeApiserver,
    KubeControllerManager,
    KubeScheduler,
    Kubectl,
    Kwok,
    Helm,
}

impl Tool {
    /// All, the longest build first.
    pub const ALL: [Self; 7] = [
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubectl,
        Self::Kwok,
        Self::Helm,
        Self::Etcd,
    ];

    /// File name of the program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubectl => "kubectl",
            Self::Kwok => "kwok",
            Self::Helm => "helm",
        }
    }

    /// The Go package that it is built from.
    fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::KubeApiserver => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::KubeControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::KubeScheduler => "k8s.io/kubernetes/cmd/kube-scheduler",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Kwok => "sigs.k8s.io/kwok/cmd/kwok",
            Self::Helm => "helm.sh/helm/v4/cmd/helm",
        }
    }
}

/// Where each program of the control plane is.
#[derive(Debug, Clone)]
pub struct Toolchain {
    paths: BTreeMap<Tool, PathBuf>,
}

impl Toolchain {
    /// Takes each program from `KUBEBUILDER_ASSETS`, from the cache, or builds it; one progress step each.
    pub async fn ensure(progress: &Progress) -> Result<Self> {
        let module = crate::checkout().join("local/controlplane");
        let cache = cache_folder()?.join(cache_key(&module)?);
        let bin = cache.join("bin");
        files::folder(&bin)?;
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let mut paths = BTreeMap::new();
        let mut lock = None;
        for tool in Tool::ALL {
            if let Some(path) = assets
                .as_ref()
                .map(|dir| dir.join(tool.name()))
                .filter(|path| path.is_file())
            {
                check_version(tool, &path).await?;
                progress.skip(tool.name(), "from KUBEBUILDER_ASSETS");
                paths.insert(tool, path);
                continue;
            }
            let path = bin.join(tool.name());
            if !path.is_file() {
                check_go().await?;
                if lock.is_none() {
                    lock = Some(lock_cache(&cache, progress).await?);
                }
            }
            // Another run may have built it while we waited for the lock.
            if path.is_file() {
                progress.skip(tool.name(), "cached");
            } else {
                let step = progress.begin(tool.name(), "building");
                step.watch(build(tool, &module, &path)).await?;
                step.done("built");
            }
            paths.insert(tool, path);
        }
        Ok(Self { paths })
    }

    /// Path of a program.
    pub fn path(&self, tool: Tool) -> &Path {
        &self.paths[&tool]
    }
}

/// `$BERTH_CACHE`, or `berth` in the user's cache folder.
pub fn cache_folder() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("BERTH_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("berth")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/berth")))
        .ok_or_else(|| Error::Malformed {
            what: "cache folder".to_owned(),
            reason: "none of BERTH_CACHE, XDG_CACHE_HOME and HOME is set".to_owned(),
        })
}

fn linker_flags() -> String {
    format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}")
}

/// What the built programs depend on: the modules and how they are linked.
pub fn cache_key(module: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for name in ["go.mod", "go.sum"] {
        let path = module.join(name);
        hash.update(fs::read(&path).map_err(Error::file("read", &path))?);
    }
    hash.update(linker_flags());
    hash.update(std::env::consts::ARCH);
    Ok(hash
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// That Go is there, in a version that does.
pub(crate) async fn check_go() -> Result<()> {
    const HINT: &str =
        "install Go 1.26 or later (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a folder with a control plane";
    let output = Command::new("go")
        .arg("env")
        .arg("GOVERSION")
        .env("GOTOOLCHAIN", "local")
        .output()
        .await;
    let Ok(output) = output else {
        return Err(Error::MissingProgram {
            program: "go",
            hint: HINT,
        });
    };
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match minor_version(&found) {
        Some((1, minor)) if minor < 26 => Err(Error::WrongVersion {
            program: "go".to_owned(),
            found,
            wanted: HINT.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// `go1.26.8`, `Kubernetes v1.36.3`: the first two numbers.
fn minor_version(text: &str) -> Option<(u32, u32)> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let mut parts = text[start..].split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

async fn check_version(tool: Tool, path: &Path) -> Result<()> {
    match tool {
        Tool::KubeApiserver | Tool::KubeControllerManager | Tool::KubeScheduler => {}
        Tool::Etcd | Tool::Kubectl | Tool::Kwok | Tool::Helm => return Ok(()),
    }
    let output = Command::new(path)
        .arg("--version")
        .output()
        .await
        .map_err(Error::file("run", path))?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match minor_version(&found) {
        Some((1, minor)) if KUBERNETES_MINORS.contains(&minor) => Ok(()),
        _ => Err(Error::WrongVersion {
            program: path.display().to_string(),
            found,
            wanted: format!(
                "Berth needs Kubernetes 1.{} to 1.{}",
                KUBERNETES_MINORS.start(),
                KUBERNETES_MINORS.end()
            ),
        }),
    }
}

/// One build at a time in a cache; the lock is let go when the file is dropped.
pub(crate) async fn lock_cache(cache: &Path, progress: &Progress) -> Result<fs::File> {
    let path = cache.join("lock");
    let file = fs::File::create(&path).map_err(Error::file("create", &path))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        progress.say(&format!(
            "        another build uses {}; waiting for it",
            cache.display()
        ));
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    Ok(file)
}

async fn build(tool: Tool, module: &Path, path: &Path) -> Result<()> {
    let temporary = path.with_file_name(format!(".{}.{}", tool.name(), std::process::id()));
    let mut command = go(module);
    command
        .args([
            "build",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            &linker_flags(),
            "-o",
        ])
        .arg(&temporary)
        .arg(tool.package());
    run(&mut command, &format!("go build {}", tool.package())).await?;
    fs::rename(&temporary, path).map_err(Error::file("create", path))
}

/// Go in one of our modules: what `go.mod` and `go.sum` say and nothing else, without a C compiler.
pub(crate) fn go(module: &Path) -> Command {
    let mut command = Command::new("go");
    command
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env("GOFLAGS", "-mod=readonly");
    command
}

/// Runs a command to its end; its stdout. What it says is shown only if it fails. Dropped, it ends the command and what that started.
pub(crate) async fn run(command: &mut Command, name: &str) -> Result<String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let child = command.spawn().map_err(|cause| Error::File {
        action: "start",
        path: name.into(),
        cause,
    })?;
    let _group = Group(child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)));
    let output = child.wait_with_output().await.map_err(|cause| Error::File {
        action: "run",
        path: name.into(),
        cause,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    Err(Error::Command {
        command: name.to_owned(),
        status: output.status.to_string(),
        output: lines[lines.len().saturating_sub(30)..].join("\n"),
    })
}

/// Ends a process group when dropped: compilers that a cancelled build has started.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // After a build that ended by itself the group is empty and this does nothing.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
        }
    }
}

/// Cargo, as if called from a shell.
///
/// Under `cargo run` and `cargo test` there are variables that describe the running package. Build scripts that watch them would
/// find them changed, and half of the dependencies would be built again, here and at the next call from the shell.
pub fn cargo() -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let own = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
        "CARGO_TARGET_TMPDIR",
        "OUT_DIR",
    ];
    for (name, _) in std::env::vars_os() {
        if own.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Our own programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Folder that holds them.
    pub folder: PathBuf,
}

/// Packages of the programs that run in a cluster.
pub const PACKAGES: [&str; 4] = ["berth-controller", "berth-agent", "berth-probe", "berth-fake-nvml"];
/// Variable that says where our own programs are, already built.
pub const BUILT: &str = "BERTH_PROGRAMS";

impl Programs {
    /// Builds them, or takes those that [`BUILT`] points at; one progress step.
    pub async fn ensure(release: bool, progress: &Progress) -> Result<Self> {
        const NAME: &str = "berth programs";
        if let Some(folder) = std::env::var_os(BUILT).filter(|folder| !folder.is_empty()) {
            progress.skip(NAME, "already built");
            return Ok(Self { folder: folder.into() });
        }
        let step = progress.begin(NAME, "cargo build");
        let mut command = Command::from(cargo());
        command.current_dir(crate::checkout()).arg("build");
        if release {
            command.arg("--release");
            for package in PACKAGES {
                command.args(["-p", package]);
            }
        } else {
            // Their dependencies alone would have fewer features, and be compiled beside those that `cargo xtask` has brought.
            command.arg("--workspace");
        }
        step.watch(run(&mut command, "cargo build")).await?;
        step.done("built");
        let folder = target_folder().await?.join(if release { "release" } else { "debug" });
        Ok(Self { folder })
    }

    /// The fake `libnvidia-ml.so.1`.
    pub fn fake_nvml(&self) -> PathBuf {
        self.folder.join("libnvidia_ml.so")
    }
}

async fn target_folder() -> Result<PathBuf> {
    let output = Command::from(cargo())
        .current_dir(crate::checkout())
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .output()
        .await
        .map_err(|cause| Error::File {
            action: "run",
            path: "cargo metadata".into(),
            cause,
        })?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(Error::malformed("output of cargo metadata"))?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .ok_or_else(|| Error::Malformed {
            what: "output of cargo metadata".to_owned(),
            reason: "no target_directory".to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let cases = [
            ("go1.26.8", Some((1, 26))),
            ("go1.27rc1", Some((1, 27))),
            ("Kubernetes v1.36.3", Some((1, 36))),
            ("devel", None),
        ];
        for (text, want) in cases {
            assert_eq!(minor_version(text), want, "{text}");
        }
    }

    #[test]
    fn every_program_is_a_tool_of_the_module() {
        let go_mod = fs::read_to_string(crate::checkout().join("local/controlplane/go.mod")).unwrap();
        for tool in Tool::ALL {
            assert!(
                go_mod.contains(&format!("\t{}\n", tool.package())),
                "{}",
                tool.package()
            );
        }
        assert!(go_mod.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}")));
    }
}
