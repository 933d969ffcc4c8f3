//! The command line: everything that the chart's values can set.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use berth_core::freshness;
use berth_core::health::breaker::Limits;
use berth_core::sampling::Sampling;
use berth_crds::premlabs::aideployment::{OnNoFit, PlacementPolicy};
use clap::{Parser, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::Toleration;

/// Writes node labels, places models, serves the kinds.
#[derive(Debug, Parser)]
#[command(name = "berth-controller", version)]
pub struct Args {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings, shared by all commands.
    #[command(flatten)]
    pub settings: Settings,
}

/// What one invocation does.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Serve until told to stop.
    Run,
    /// Stop the running controller, then take every gate of ours from pods and templates: the chart's pre-delete hook.
    Release,
}

/// How this installation behaves.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    /// Namespace of the installation.
    #[arg(long, env = "BERTH_NAMESPACE", default_value = "berth-system", global = true)]
    pub namespace: String,
    /// Name of this pod: identity in the leader Lease, and the pod that gets the leader label.
    #[arg(long, env = "BERTH_POD_NAME", default_value = "", global = true)]
    pub pod_name: String,
    /// Name of the controller's Deployment, for `release`.
    #[arg(long, default_value = "berth-controller", global = true)]
    pub deployment: String,
    /// Where agents connect (TLS).
    #[arg(long, default_value = "[::]:8443", global = true)]
    pub agents_address: SocketAddr,
    /// Health, metrics and explanations (plain HTTP).
    #[arg(long, default_value = "[::]:8080", global = true)]
    pub http_address: SocketAddr,
    /// Name of the Service that agents connect to; the certificate is for `<service>.<namespace>.svc`.
    #[arg(long, default_value = "berth-controller", global = true)]
    pub service: String,
    /// ServiceAccount that agents must present a token of.
    #[arg(long, default_value = "berth-agent", global = true)]
    pub agent_service_account: String,
    /// Secret that holds CA and leaf certificate of the agent link.
    #[arg(long, default_value = "berth-trust", global = true)]
    pub trust_secret: String,
    /// ConfigMap that publishes the CA to the agents.
    #[arg(long, default_value = "berth-ca", global = true)]
    pub ca_config_map: String,
    /// Milliseconds between two samples of a GPU.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=SLOWEST_SAMPLE_MS), global = true)]
    pub sample_interval_ms: u64,
    /// The same on a node where no pod has a GPU or is promised one.
    #[arg(long, default_value_t = SLOWEST_SAMPLE_MS, value_parser = clap::value_parser!(u64).range(100..=SLOWEST_SAMPLE_MS), global = true)]
    pub idle_sample_interval_ms: u64,
    /// Whether node labels are written or only reported.
    #[arg(long, value_enum, default_value_t = NodesMode::Apply, global = true)]
    pub nodes_mode: NodesMode,
    /// GFD's keys and `nvidia.com/gpu.present`.
    #[arg(long, value_enum, default_value_t = KeyFamily::Auto, global = true)]
    pub nvidia_labels: KeyFamily,
    /// NFD's `feature.node.kubernetes.io/pci-*` keys.
    #[arg(long, value_enum, default_value_t = KeyFamily::Auto, global = true)]
    pub nfd_labels: KeyFamily,
    /// The keys of AMD's node labeller.
    #[arg(long, value_enum, default_value_t = KeyFamily::Auto, global = true)]
    pub amd_labels: KeyFamily,
    /// The keys of Intel's device plugins.
    #[arg(long, value_enum, default_value_t = KeyFamily::Auto, global = true)]
    pub intel_labels: KeyFamily,
    /// The node condition `nvidia.com/GPUReady`.
    #[arg(long, value_enum, default_value_t = KeyFamily::Auto, global = true)]
    pub nvidia_condition: KeyFamily,
    /// The node condition `amd.com/GPUReady`.
    #[arg(long, value_enum, default_value_t = KeyFamily::Auto, global = true)]
    pub amd_condition: KeyFamily,
    /// A further node condition that says what the readiness conditions say, as `<type>=auto|always|never`. Repeatable.
    #[arg(long = "extra-condition", value_parser = extra_condition, global = true)]
    pub extra_conditions: Vec<(String, KeyFamily)>,
    /// When a node gets the taint that keeps all new pods away.
    #[arg(long, value_enum, default_value_t = TaintWhen::Never, global = true)]
    pub health_taint: TaintWhen,
    /// Percent of the GPU nodes that may be out for their health at the same time.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100), global = true)]
    pub breaker_share_percent: u32,
    /// Nodes that may be taken out for their health within ten minutes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), global = true)]
    pub breaker_new: u32,
    /// Of these, nodes with the same cause and driver version.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), global = true)]
    pub breaker_same_cause: u32,
    /// ConfigMap that NVIDIA's device plugin reads, for MIG strategy and sharing; absent: neither.
    #[arg(long, value_name = "NAMESPACE/NAME", global = true)]
    pub device_plugin_config: Option<ObjectName>,
    /// Write nvidia.com/gfd.timestamp: when a node's labels changed last.
    #[arg(long, global = true)]
    pub gfd_timestamp: bool,
    /// Who places AIDeployments that ask for a GPU and do not say.
    #[arg(long, value_parser = policy, default_value = "Managed", global = true)]
    pub placement_default: PlacementPolicy,
    /// What happens to a pod that fits nowhere and does not say.
    #[arg(long, value_parser = on_no_fit, default_value = "Wait", global = true)]
    pub on_no_fit_default: OnNoFit,
    /// Image of an engine where an AIDeployment names none, as `<engine>=<repository>[:<tag>]`; a part that is not given is the engine's own.
    /// Repeatable.
    #[arg(long = "engine-image", value_parser = engine_image, global = true)]
    pub engine_images: Vec<(String, Image)>,
    /// Toleration that AIDeployment pods with GPUs get, as JSON. Repeatable.
    #[arg(long = "gpu-toleration", value_parser = toleration, global = true)]
    pub gpu_tolerations: Vec<Toleration>,
    /// Label keys in protected domains that AutoNodeLabelers may write all the same. Repeatable.
    #[arg(long = "labeler-allow-key", global = true)]
    pub labeler_allow_keys: Vec<String>,
    /// Namespaces whose AutoNodeLabelers count; none given: all. Repeatable.
    #[arg(long = "labeler-namespace", global = true)]
    pub labeler_namespaces: Vec<String>,
    /// Where AIModels get their requests from.
    #[command(flatten)]
    pub pulsar: Pulsar,
    /// How MLModels are downloaded and served.
    #[command(flatten)]
    pub mlmodels: MlModels,
    /// How ModelDeployments are validated and served.
    #[command(flatten)]
    pub model_deployments: ModelDeployments,
}

/// Longest time between two samples.
const SLOWEST_SAMPLE_MS: u64 = 3000;
const _: () = assert!(
    freshness::SLOWEST_SAMPLE.as_millis() == SLOWEST_SAMPLE_MS as u128,
    "as in the table of times"
);

impl Settings {
    /// How often GPUs are read.
    pub fn sampling(&self) -> Sampling {
        let [busy, idle] = [self.sample_interval_ms, self.idle_sample_interval_ms].map(Duration::from_millis);
        Sampling::new(busy, idle)
    }

    /// How much of the fleet health may take out.
    pub fn breaker_limits(&self) -> Limits {
        Limits {
            share_percent: self.breaker_share_percent,
            new: self.breaker_new,
            same_cause: self.breaker_same_cause,
        }
    }
}

/// What an installation sets for MLModels.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct MlModels {
    /// Image that downloads: with a POSIX shell at /bin/sh, curl with CA certificates, and the tools of busybox.
    #[arg(
        long = "mlmodel-download-image",
        default_value = "docker.io/curlimages/curl:8.11.1",
        global = true
    )]
    pub download_image: String,
    /// Image of a framework's server where the spec names none: `<framework>=<image>`. Repeatable.
    #[arg(long = "mlmodel-image", value_parser = named_image, global = true)]
    pub images: Vec<(String, String)>,
    /// No download before the volume is bound. With volumes that wait for their first consumer nothing is ever downloaded then.
    #[arg(
        long = "mlmodel-ensure-storage",
        env = "ENSURE_STORAGE_AVAILABILITY",
        value_parser = boolish,
        default_value = "false",
        global = true
    )]
    pub ensure_storage: bool,
    /// Seconds after which a volume that is not bound makes an MLModel Failed, until it is.
    #[arg(long = "mlmodel-storage-timeout-seconds", default_value_t = 600, global = true)]
    pub storage_timeout_seconds: u64,
    /// Seconds that the servers of an MLModel may take to get ready, before it is Failed until they are. Absent: 600, Kubernetes' own.
    #[arg(long = "mlmodel-start-timeout-seconds", value_parser = clap::value_parser!(i32).range(1..), global = true)]
    pub start_timeout_seconds: Option<i32>,
}

/// What an installation sets for ModelDeployments.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ModelDeployments {
    /// Image that validates: with python, and the scripts that specs name in its working directory.
    #[arg(
        id = "modeldeployment_validator_image",
        long = "modeldeployment-validator-image",
        default_value = "validator:dev",
        global = true
    )]
    pub validator_image: String,
    /// Image of a runtime where the spec names none: `<runtime>=<image>`. Repeatable.
    #[arg(
        id = "modeldeployment_images",
        long = "modeldeployment-image",
        value_parser = named_image,
        global = true
    )]
    pub images: Vec<(String, String)>,
    /// Most servers of one with `autoscale` that does not say.
    #[arg(
        id = "modeldeployment_max_replicas",
        long = "modeldeployment-max-replicas",
        default_value_t = 5,
        value_parser = clap::value_parser!(i32).range(1..),
        global = true
    )]
    pub max_replicas: i32,
    /// Seconds after which a validation that has no node makes a ModelDeployment Failed, until it has.
    #[arg(
        id = "modeldeployment_place_timeout_seconds",
        long = "modeldeployment-place-timeout-seconds",
        default_value_t = 600,
        global = true
    )]
    pub place_timeout_seconds: u64,
}

/// Pulsar, for AIModels. The variables are those of the original operator; one that is set to nothing counts as set.
#[derive(Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Pulsar {
    /// Admin API of Pulsar, which KEDA asks for the backlog. Empty: AIModels are not scaled.
    #[arg(
        long = "pulsar-admin-url",
        env = "PULSAR_ADMIN_URL",
        default_value = "",
        global = true
    )]
    pub admin_url: String,
    /// Pulsar, as the workers reach it.
    #[arg(
        long = "pulsar-url",
        env = "PULSAR_URL",
        default_value = "pulsar://localhost:6650",
        global = true
    )]
    pub url: String,
    /// Token for Pulsar. Empty: none is needed.
    #[arg(
        long = "pulsar-token",
        env = "PULSAR_TOKEN",
        default_value = "",
        hide_env_values = true,
        global = true
    )]
    pub token: String,
    /// Topic that the workers answer to.
    #[arg(
        long = "res-topic-name",
        env = "RES_TOPIC_NAME",
        default_value = "res-topic",
        global = true
    )]
    pub res_topic_name: String,
}

impl std::fmt::Debug for Pulsar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pulsar")
            .field("admin_url", &self.admin_url)
            .field("url", &self.url)
            .field("token", &if self.token.is_empty() { "" } else { "(set)" })
            .field("res_topic_name", &self.res_topic_name)
            .finish()
    }
}

/// An engine's image, in parts as an AIDeployment's options give it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Without tag.
    pub repository: Option<String>,
    /// Tag.
    pub tag: Option<String>,
}

/// Whether node labels are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodesMode {
    /// Write them.
    Apply,
    /// Write nothing, report what would be written.
    Observe,
}

/// Whether a family of label keys, or a condition, is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyFamily {
    /// Keys that another manager owns are left to it and reported once.
    Auto,
    /// All of them, taking keys over.
    Always,
    /// None of them.
    Never,
}

/// When a node is tainted for the health of its GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaintWhen {
    /// Never; a taint of ours that is there goes.
    Never,
    /// When one of its GPUs may not be handed out.
    Any,
    /// When none of its GPUs may be.
    All,
}

/// An object of a namespaced kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for ObjectName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(format!("{s:?} is not of the form namespace/name")),
        }
    }
}

/// A colon before the last slash is a registry's port, not a tag's.
fn engine_image(s: &str) -> Result<(String, Image), String> {
    let wrong = || format!("{s:?} is not <engine>=<repository>[:<tag>]");
    let (engine, image) = s.split_once('=').ok_or_else(wrong)?;
    let name_at = image.rfind('/').map_or(0, |slash| slash + 1);
    let (repository, tag) = match image[name_at..].split_once(':') {
        Some((name, tag)) => (&image[..name_at + name.len()], Some(tag)),
        None => (image, None),
    };
    let part = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let image = Image {
        repository: part(repository),
        tag: tag.and_then(part),
    };
    let has_blank = s.contains(char::is_whitespace);
    match engine.is_empty() || has_blank || image == Image::default() || tag == Some("") {
        true => Err(wrong()),
        false => Ok((engine.to_owned(), image)),
    }
}

fn named_image(s: &str) -> Result<(String, String), String> {
    let parts = s
        .split_once('=')
        .map(|(framework, image)| (framework.trim().to_ascii_lowercase(), image.trim()));
    match parts {
        Some((framework, image)) if !framework.is_empty() && !image.is_empty() => Ok((framework, image.to_owned())),
        _ => Err(format!("{s:?} is not <name>=<image>")),
    }
}

fn extra_condition(s: &str) -> Result<(String, KeyFamily), String> {
    let wrong = || format!("{s:?} is not <type>=auto|always|never");
    let (type_, rule) = s.split_once('=').filter(|(t, _)| !t.is_empty()).ok_or_else(wrong)?;
    let rule = KeyFamily::from_str(rule, false).map_err(|_| wrong())?;
    Ok((type_.to_owned(), rule))
}

/// As Go reads it, like the original.
fn boolish(s: &str) -> Result<bool, String> {
    match s {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

fn toleration(s: &str) -> Result<Toleration, String> {
    serde_json::from_str(s).map_err(|error| format!("{s:?} is no toleration in JSON: {error}"))
}

fn policy(s: &str) -> Result<PlacementPolicy, String> {
    match s {
        "Managed" => Ok(PlacementPolicy::Managed),
        "Scheduler" => Ok(PlacementPolicy::Scheduler),
        other => Err(format!("{other:?} is neither Managed nor Scheduler")),
    }
}

fn on_no_fit(s: &str) -> Result<OnNoFit, String> {
    match s {
        "Wait" => Ok(OnNoFit::Wait),
        "Release" => Ok(OnNoFit::Release),
        other => Err(format!("{other:?} is neither Wait nor Release")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn a_token_is_not_printed() {
        let args = Args::parse_from(["berth-controller", "run", "--pulsar-token=hush"]);
        assert_eq!(args.settings.pulsar.token, "hush");
        assert!(!format!("{:?}", args.settings).contains("hush"));
    }

    #[test]
    fn names_of_objects() {
        for (text, valid) in [
            ("a/b", true),
            ("a", false),
            ("/b", false),
            ("a/", false),
            ("a/b/c", false),
        ] {
            assert_eq!(text.parse::<ObjectName>().is_ok(), valid, "{text}");
        }
    }

    #[test]
    fn images_come_apart_at_the_tag() {
        type Parts<'a> = (&'a str, Option<&'a str>, Option<&'a str>);
        let cases: &[(&str, Option<Parts<'_>>)] = &[
            ("vllm=a/b:v1", Some(("vllm", Some("a/b"), Some("v1")))),
            ("vllm=reg:5000/a/b", Some(("vllm", Some("reg:5000/a/b"), None))),
            ("vllm=reg:5000/a/b:v1", Some(("vllm", Some("reg:5000/a/b"), Some("v1")))),
            ("vllm=b:v1", Some(("vllm", Some("b"), Some("v1")))),
            ("vllm=:v1", Some(("vllm", None, Some("v1")))),
            ("vllm=", None),
            ("vllm=a:", None),
            ("=a", None),
            ("vllm", None),
            ("vllm=a b", None),
        ];
        for (text, want) in cases {
            let got = engine_image(text).ok();
            let got = got
                .as_ref()
                .map(|(e, i)| (e.as_str(), i.repository.as_deref(), i.tag.as_deref()));
            assert_eq!(got, *want, "{text}");
        }
    }

    #[test]
    fn tolerations_are_json() {
        let args = Args::parse_from([
            "berth-controller",
            r#"--gpu-toleration={"key":"nvidia.com/gpu","operator":"Exists"}"#,
        ]);
        assert_eq!(args.settings.gpu_tolerations[0].key.as_deref(), Some("nvidia.com/gpu"));
        assert!(Args::try_parse_from(["berth-controller", "--gpu-toleration=all"]).is_err());
    }

    #[test]
    fn settings_may_follow_the_command() {
        let args = Args::parse_from([
            "berth-controller",
            "run",
            "--agents-address=127.0.0.1:1",
            "--labeler-allow-key=a/b",
        ]);
        assert_eq!(args.settings.agents_address.port(), 1);
        assert_eq!(args.settings.labeler_allow_keys, ["a/b"]);
    }
}
