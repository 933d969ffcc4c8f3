//! vLLM's OpenAI-compatible server.

use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use berth_crds::premlabs::aimodelmap::VariantList;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Probe, Volume};

use super::{Asked, Engine, ModelField, Probes, Serving, http_probe, one_model, option};
use crate::kinds::aideployment::models::ResolvedModel;
use crate::kinds::status::problems::Findings;

/// Port of the server in the image.
const PORT: u16 = 8000;
/// Where the image keeps what it downloads.
const MODELS: &str = "/root/.cache/huggingface";

/// vLLM.
pub const ENGINE: Engine = Engine {
    name: "vllm",
    options: &["imageRepository", "imageTag", "dtype", "quantization"],
    model_fields: &[ModelField::Uri, ModelField::Quantization, ModelField::DataType],
    variants: Some(VariantList::Vllm),
    read,
};

fn read(asked: &Asked<'_>, findings: &mut Findings) -> Option<Serving> {
    let spec = asked.spec;
    let model = one_model(ENGINE.name, asked, findings);
    let of_model = |field: ModelField, value: fn(&ResolvedModel) -> &Option<String>| {
        let model = model.map(|(m, _)| m)?;
        Some((model.field(field), value(model).clone()?))
    };
    let dtype = of_model(ModelField::DataType, |m| &m.data_type);
    let dtype = argument("dtype", spec, dtype, findings);
    let quantization = of_model(ModelField::Quantization, |m| &m.quantization);
    let quantization = argument("quantization", spec, quantization, findings);
    let (_, uri) = model?;

    let mut serving = Serving::on_port(PORT, spec, findings).on_template(spec);
    serving.image(asked, ENGINE.name, "vllm/vllm-openai", "latest");
    let mut args = vec!["--model".to_owned(), uri.to_owned()];
    for (flag, value) in [("--dtype", dtype), ("--quantization", quantization)] {
        args.extend(value.into_iter().flat_map(|v| [flag.to_owned(), v]));
    }
    // By itself it would use one GPU and leave the others idle.
    let given = serving.container.args.iter().flatten().chain(&spec.args);
    if asked.gpus > 1 && !given.into_iter().any(|arg| says_how_to_share(arg)) {
        args.extend(["--tensor-parallel-size".to_owned(), asked.gpus.to_string()]);
    }
    serving.args(args);
    serving.probes(probes());
    serving.with_volume(
        Volume {
            name: "models".into(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
        MODELS,
    );
    serving.shared_memory(asked.gpus);
    Some(serving)
}

fn probes() -> Probes {
    Probes {
        startup: Probe {
            initial_delay_seconds: Some(3),
            period_seconds: Some(1),
            failure_threshold: Some(120),
            ..http_probe("/health", PORT)
        },
        readiness: Probe {
            failure_threshold: Some(3),
            ..http_probe("/health", PORT)
        },
        liveness: Probe {
            period_seconds: Some(30),
            timeout_seconds: Some(15),
            failure_threshold: Some(10),
            ..http_probe("/health", PORT)
        },
    }
}

/// Whether an argument says how GPUs are shared out, or may do so in a file that arguments would win over.
fn says_how_to_share(arg: &str) -> bool {
    let flag = arg.split('=').next().unwrap_or_default().replace('_', "-");
    [
        "--tensor-parallel-size",
        "-tp",
        "--pipeline-parallel-size",
        "-pp",
        "--data-parallel-size",
        "-dp",
        "--config",
    ]
    .contains(&flag.as_str())
}

/// The value of a flag: the engine's option wins over the model's field (here with its path), and an empty one is none at all.
fn argument(
    key: &str,
    spec: &AIDeploymentSpec,
    of_model: Option<(String, String)>,
    findings: &mut Findings,
) -> Option<String> {
    let (path, value) = match option(spec, key) {
        Some(value) => (format!("spec.engine.options.{key}"), value.to_owned()),
        None => of_model?,
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !value.chars().all(fits) || value.starts_with('-') {
        findings.invalid(
            path,
            format_args!("{value:?} has characters other than letters, digits, '_', '-' and '.', or starts with '-'"),
            format_args!("write a value that vLLM knows for --{key}"),
        );
        return None;
    }
    Some(value)
}
