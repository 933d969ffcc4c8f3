//! What behaviour tests share: one cluster for all trials of a binary, ended whatever happens.
//!
//! ```ignore
//! fn main() -> std::process::ExitCode {
//!     Suite::new("labels")
//!         .trial("h100 nodes have the whole set", async |cluster| { … Ok(()) })
//!         .run()
//! }
//! ```
//!
//! A trial is an async function of the running [`Cluster`]; it fails by returning an error or by panicking. Trials run one after
//! the other, in order, because they share nodes and objects: each cleans up what would disturb the next, and needs none before it.

pub mod faults;
mod fixture;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use berth_local::{Cluster, Error, Fleet, Install, Options, Progress, Signals, StateFolder, process};
use futures::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use parking_lot::RwLock;
use tokio::runtime::Runtime;

pub use fixture::{Call, Fixture, NAMESPACE, Said, condition, eventually, vllm};

/// What a trial returns.
pub type Outcome = anyhow::Result<()>;

type Body = Box<dyn FnOnce(Arc<Cluster>) -> LocalBoxFuture<'static, Outcome> + Send>;

/// The trials of one test binary and the cluster that they need.
pub struct Suite {
    name: &'static str,
    options: Options,
    trials: Vec<(&'static str, Body)>,
}

impl Suite {
    /// The default fleet with our charts; `name` is the binary's.
    pub fn new(name: &'static str) -> Self {
        let fleet = Fleet::read(&Fleet::default_file()).unwrap_or_else(|error| panic!("{error}"));
        Self {
            name,
            options: Options::new(fleet),
            trials: vec![],
        }
    }

    /// Another fleet.
    pub fn fleet(mut self, fleet: Fleet) -> Self {
        self.options.fleet = fleet;
        self
    }

    /// Values of the chart, over those that every cluster on one machine has.
    pub fn values(mut self, values: serde_json::Value) -> Self {
        self.options.install = Install::charts(values);
        self
    }

    /// A cluster without our charts.
    pub fn bare(mut self) -> Self {
        self.options.install = Install::Nothing;
        self
    }

    /// With real KEDA in the cluster, and autoscalers that act within seconds.
    pub fn keda(mut self) -> Self {
        self.options.keda = true;
        self
    }

    /// Adds a trial.
    pub fn trial<F>(mut self, name: &'static str, body: impl FnOnce(Arc<Cluster>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Outcome> + 'static,
    {
        self.trials
            .push((name, Box::new(move |cluster| Box::pin(body(cluster)))));
        self
    }

    /// Starts the cluster if a trial is to run, runs the trials, ends the cluster, and says how it went.
    pub fn run(self) -> ExitCode {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            // The client reports every refused connection as an error; while a server starts that is no news.
            .unwrap_or_else(|_| "warn,kube_client::client=off".into());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
        let mut args = Arguments::from_args();
        args.test_threads = Some(1);
        let runtime = Arc::new(Runtime::new().unwrap_or_else(|error| panic!("cannot start a runtime: {error}")));
        let slot: Slot = Arc::default();
        let mut wanted = false;
        let mut trials = vec![];
        for (name, body) in self.trials {
            let (runtime, slot) = (runtime.clone(), slot.clone());
            let trial = Trial::test(name, move || {
                let cluster = slot.read().clone().ok_or("there is no cluster")?;
                runtime
                    .block_on(body(cluster))
                    .map_err(|error| Failed::from(format!("{error:#}")))
            });
            wanted |= !args.list && !args.is_filtered_out(&trial);
            trials.push(trial);
        }
        if !wanted {
            return libtest_mimic::run(&args, trials).exit_code();
        }
        let (path, cluster, signals) = match runtime.block_on(start(self.name, self.options)) {
            Ok(Some(started)) => started,
            Ok(None) => return INTERRUPTED.into(),
            Err(error) => {
                eprintln!("cannot start a cluster for {}: {error}", self.name);
                return ExitCode::FAILURE;
            }
        };
        *slot.write() = Some(Arc::new(cluster));
        runtime.spawn(end_on_signal(signals, path.clone()));
        let conclusion = libtest_mimic::run(&args, trials);
        let code = conclusion.exit_code();
        match runtime.block_on(end(&slot, &path)) {
            Ok(()) if !conclusion.has_failed() => {
                let _ = std::fs::remove_dir_all(&path);
                code
            }
            Ok(()) => {
                eprintln!("logs of the cluster: {}", path.join("logs").display());
                code
            }
            Err(error) => {
                eprintln!("the cluster did not end: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// The one cluster of this process; empty before and after.
type Slot = Arc<RwLock<Option<Arc<Cluster>>>>;

/// Exit code of a process that was asked to end.
const INTERRUPTED: u8 = 130;

/// Starts in the first free folder: a binary that runs twice at once gets two clusters. `None`: a signal came first, and what was
/// started is ended.
async fn start(name: &str, options: Options) -> Result<Option<(PathBuf, Cluster, Signals)>, Error> {
    let mut signals = Signals::new().map_err(Error::file("listen for signals to", name))?;
    let base = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/behaviour");
    let mut number = 0;
    let state = loop {
        let suffix = if number == 0 {
            String::new()
        } else {
            format!("-{number}")
        };
        match StateFolder::lock(&base.join(format!("{name}{suffix}"))) {
            Err(Error::InUse { .. }) => number += 1,
            other => break other?,
        }
    };
    let path = state.path().to_path_buf();
    let more = if options.keda { berth_local::keda::STEPS } else { 0 };
    let progress = Progress::new(berth_local::cluster::STEPS + more, |line| eprintln!("{line}"));
    tokio::select! {
        cluster = Cluster::start(state, Options { progress, ..options }) => Ok(Some((path, cluster?, signals))),
        name = signals.next() => {
            eprintln!("{name}: ending what was started");
            process::sweep(&path).await?;
            Ok(None)
        }
    }
}

async fn end(slot: &Slot, path: &std::path::Path) -> Result<(), Error> {
    let cluster = slot.write().take();
    if let Some(cluster) = cluster.and_then(Arc::into_inner) {
        cluster.stop().await?;
    }
    // A trial that panicked may still hold the cluster.
    process::sweep(path).await.map(drop)
}

/// Ctrl-C ends the cluster, not only the tests.
async fn end_on_signal(mut signals: Signals, path: PathBuf) {
    let name = signals.next().await;
    eprintln!("{name}: ending the cluster");
    if let Err(error) = process::sweep(&path).await {
        eprintln!("{error}");
    }
    std::process::exit(INTERRUPTED.into());
}
