//! KEDA from its Go modules, into the cache: two programs and its CRDs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;
use crate::progress::Progress;
use crate::toolchain::{cache_folder, cache_key, check_go, go, lock_cache, run};

/// Version that is built; `local/keda/go.mod` names the modules.
pub const VERSION: &str = "v2.21.0";
const MODULE: &str = "github.com/kedacore/keda/v2";
/// Programs of the module, each a folder of `cmd/`.
const PROGRAMS: [&str; 2] = ["operator", "adapter"];
const STEP: &str = "keda";

/// What is built, in the cache.
#[derive(Debug, Clone)]
pub struct Built {
    /// Reads ScaledObjects, makes HorizontalPodAutoscalers, asks for the metrics.
    pub operator: PathBuf,
    /// Serves the metrics to the HPA controller.
    pub adapter: PathBuf,
    /// Folder of CRDs.
    pub crds: PathBuf,
}

impl Built {
    /// Takes it from the cache, or builds it; one progress step.
    pub async fn ensure(progress: &Progress) -> Result<Self> {
        let module = crate::checkout().join("local/keda");
        let cache = cache_folder()?.join(format!("keda-{}", cache_key(&module)?));
        let built = Self {
            operator: cache.join("bin/operator"),
            adapter: cache.join("bin/adapter"),
            crds: cache.join("crds"),
        };
        if built.is_there() {
            progress.skip(STEP, "cached");
            return Ok(built);
        }
        check_go().await?;
        files::folder(&cache)?;
        let _lock = lock_cache(&cache, progress).await?;
        // Another run may have built it while we waited for the lock.
        if built.is_there() {
            progress.skip(STEP, "cached");
            return Ok(built);
        }
        let step = progress.begin(STEP, &format!("building {VERSION} (once, about 5 minutes)"));
        step.watch(build(&module, &cache)).await?;
        step.done("built");
        Ok(built)
    }

    fn is_there(&self) -> bool {
        self.operator.is_file() && self.adapter.is_file() && self.crds.is_dir()
    }
}

async fn build(module: &Path, cache: &Path) -> Result<()> {
    let scratch = Scratch(cache.join("scratch"));
    files::remove(&scratch.0)?;
    let bin = scratch.0.join("bin");
    files::folder(&bin)?;
    let mut command = go(module);
    command
        // Nothing else is compiled from these packages, and compiled they take 4 GB.
        .env("GOCACHE", scratch.0.join("go"))
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"])
        .arg(&bin)
        .args(PROGRAMS.map(|program| format!("{MODULE}/cmd/{program}")));
    run(&mut command, "go build of KEDA").await.map_err(with_hint)?;

    let mut command = go(module);
    command.args(["list", "-m", "-f", "{{.Dir}}", MODULE]);
    let sources = run(&mut command, "go list of KEDA").await.map_err(with_hint)?;
    let sources = Path::new(sources.trim()).join("config/crd/bases");
    let crds = scratch.0.join("crds");
    for entry in fs::read_dir(&sources).map_err(Error::file("read", &sources))? {
        let entry = entry.map_err(Error::file("read", &sources))?;
        let content = fs::read(entry.path()).map_err(Error::file("read", entry.path()))?;
        files::folder(&crds)?;
        files::write(&crds.join(entry.file_name()), &content, 0o644)?;
    }
    for name in ["crds", "bin"] {
        let (from, to) = (scratch.0.join(name), cache.join(name));
        files::remove(&to)?;
        fs::rename(&from, &to).map_err(Error::file("create", &to))?;
    }
    Ok(())
}

/// What fails here is nearly always the network.
fn with_hint(error: Error) -> Error {
    let Error::Command {
        command,
        status,
        output,
    } = error
    else {
        return error;
    };
    Error::Command {
        command,
        status,
        output: format!(
            "KEDA {VERSION} is built once, from Go modules that are fetched then (go env GOPROXY): this takes a network. Go said:\n{output}"
        ),
    }
}

/// A folder that goes, however the build ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next build begins by removing it.
        let _ = files::remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_a_tool_of_the_module() {
        let go_mod = fs::read_to_string(crate::checkout().join("local/keda/go.mod")).unwrap();
        for program in PROGRAMS {
            assert!(go_mod.contains(&format!("\t{MODULE}/cmd/{program}\n")), "{program}");
        }
        assert!(go_mod.contains(&format!("{MODULE} {VERSION}")));
    }
}
