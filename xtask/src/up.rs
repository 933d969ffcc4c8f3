//! `cargo xtask up`: a whole cluster on this machine, from nothing.
//!
//! ```text
//! up            ─► run in the foreground until Ctrl-C
//! up --detach   ─► the same in a session of its own, its log in <state>/up.log, followed until it is ready
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use berth_local::cluster::STEPS;
use berth_local::process::{self, Identity};
use berth_local::state::{StateFolder, held_by};
use berth_local::{Cluster, Fleet, Install, Options, Progress, Signals, controlplane};

use crate::show;
use crate::status::{self, Phase, Status};

/// Arguments of `up`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Return when everything is ready; `cargo xtask down` ends it.
    #[arg(long)]
    detach: bool,
    /// The machines of the cluster [default: local/fleets/default.yaml].
    #[arg(long)]
    fleet: Option<PathBuf>,
    /// Folder for everything of the cluster.
    #[arg(long, default_value_os_t = status::default_folder())]
    state: PathBuf,
    /// Values of the chart, a YAML file.
    #[arg(long)]
    values: Option<PathBuf>,
    /// Build Berth with optimisation.
    #[arg(long)]
    release: bool,
    /// This is the process that `--detach` has started.
    #[arg(long, hide = true)]
    supervised: bool,
}

/// Starts a cluster, or says that it runs.
pub fn run(args: Args) -> anyhow::Result<()> {
    // Before anything is built: what is wrong in a file is said at once.
    let fleet = Fleet::read(&args.fleet.clone().unwrap_or_else(Fleet::default_file))?;
    let values = match &args.values {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_saphyr::from_str(&text).with_context(|| format!("values {}", path.display()))?
        }
        None => serde_json::Value::Null,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if args.supervised {
        // Not a group leader yet, being its starter's child, so this cannot fail.
        let _ = rustix::process::setsid();
    } else if runtime.block_on(is_running(&args.state))? {
        return Ok(());
    }
    if args.detach {
        return runtime.block_on(detach(&args));
    }
    let options = Options {
        install: Install::charts(values),
        release: args.release,
        progress: Progress::stdout(STEPS + show::STEPS),
        ..Options::new(fleet)
    };
    runtime.block_on(serve(&args.state, options, args.supervised))
}

/// Whether a healthy cluster runs in this folder; an unhealthy one is ended.
async fn is_running(state: &Path) -> anyhow::Result<bool> {
    let Some(owner) = held_by(state) else { return Ok(false) };
    let state = std::fs::canonicalize(state)?;
    let status = Status::read(&state).filter(|status| status.owner == owner);
    let Some(status) = status else {
        return takeover(&owner).await;
    };
    match status.phase {
        Phase::Starting => bail!(
            "process {} is starting a cluster in {}: wait for it, or end it with `cargo xtask down`",
            owner.pid,
            state.display()
        ),
        Phase::Ready => match status.reach {
            Some(reach) if answers(&reach.kubeconfig).await => {
                say!("a cluster is running already (process {})\n", owner.pid);
                say!("{}", show::hints(&reach));
                Ok(true)
            }
            _ => takeover(&owner).await,
        },
    }
}

/// Whether the API server says that it is ready. A busy machine is no reason to end a cluster: asked again for about 20 s.
async fn answers(kubeconfig: &Path) -> bool {
    for pause in [1, 1, 1, 2] {
        if controlplane::is_healthy(kubeconfig).await {
            return true;
        }
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
    controlplane::is_healthy(kubeconfig).await
}

async fn takeover(owner: &Identity) -> anyhow::Result<bool> {
    say!("an earlier run (process {}) no longer works; ending it", owner.pid);
    let owner = owner.clone();
    tokio::task::spawn_blocking(move || status::end(&owner, Duration::from_secs(10))).await?;
    Ok(false)
}

/// Runs the cluster in this process until a signal or a failure; `supervised`: in the background.
async fn serve(state: &Path, options: Options, supervised: bool) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let folder = StateFolder::lock(state)?;
    let path = folder.path().to_path_buf();
    Status::write(&path, Phase::Starting, None)?;
    let progress = options.progress.clone();
    let cluster = tokio::select! {
        cluster = Cluster::start(folder, options) => cluster?,
        name = signals.next() => {
            say!("\n{name}: ending what was started");
            process::sweep(&path).await?;
            bail!("interrupted");
        }
    };
    let outcome = tokio::select! {
        outcome = present(&cluster, &progress, supervised) => match outcome {
            Ok(()) => tokio::select! {
                name = signals.next() => { say!("\n{name}: ending the cluster"); Ok(()) }
                error = cluster.failed() => Err(error.into()),
            },
            Err(error) => Err(error),
        },
        name = signals.next() => { say!("\n{name}: ending the cluster"); Ok(()) }
        error = cluster.failed() => Err(error.into()),
    };
    cluster.stop().await?;
    if outcome.is_ok() {
        say!("ended; nothing is left running");
    }
    outcome
}

async fn present(cluster: &Cluster, progress: &Progress, supervised: bool) -> anyhow::Result<()> {
    show::example(cluster, progress).await?;
    let reach = show::reach(cluster).await?;
    say!("\n{}", show::hints(&reach));
    if !supervised {
        say!("Ctrl-C ends the cluster, too.");
    }
    let _ = std::io::stdout().flush();
    Status::write(cluster.state(), Phase::Ready, Some(reach))
}

/// Starts this program again in the background, and follows its log until the cluster is ready.
async fn detach(args: &Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.state).with_context(|| format!("cannot create {}", args.state.display()))?;
    let state = std::fs::canonicalize(&args.state)?;
    let path = state.join("up.log");
    let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut follow = File::open(&path)?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("up").arg("--supervised").arg("--state").arg(&state);
    if let Some(fleet) = &args.fleet {
        command.arg("--fleet").arg(fleet);
    }
    if let Some(values) = &args.values {
        command.arg("--values").arg(values);
    }
    if args.release {
        command.arg("--release");
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command
        .spawn()
        .context("cannot start the process that runs the cluster")?;
    let id = child.id().and_then(Identity::of);
    let mut signals = Signals::new()?;
    let mut pass_on = || -> anyhow::Result<()> {
        let mut text = Vec::new();
        follow.read_to_end(&mut text)?;
        let mut out = std::io::stdout();
        let _ = out.write_all(&text).and_then(|()| out.flush());
        Ok(())
    };
    loop {
        // Asked before the log is read: what was written before it became ready is then shown as well.
        let ready = Status::read(&state).is_some_and(|s| s.phase == Phase::Ready && Some(&s.owner) == id.as_ref());
        let ended = child.try_wait()?;
        pass_on()?;
        if ready {
            say!(
                "running in the background (process {}); log: {}",
                child.id().unwrap_or(0),
                path.display()
            );
            return Ok(());
        }
        if let Some(status) = ended {
            bail!("the cluster did not start ({status}); log: {}", path.display());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            name = signals.next() => {
                say!("\n{name}: ending what was started");
                if let Some(id) = id {
                    tokio::task::spawn_blocking(move || status::end(&id, Duration::from_secs(15))).await?;
                }
                process::sweep(&state).await?;
                bail!("interrupted");
            }
        }
    }
}
