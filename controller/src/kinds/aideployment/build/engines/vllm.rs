//! vLLM's OpenAI-compatible server.

use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use berth_crds::premlabs::aimodelmap::VariantList;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Probe, Volume};

use super::{Asked, Engine, ModelField, Serving, http_probe, image, one_model, option};
use crate::kinds::aideployment::models::ResolvedModel;
use crate::kinds::problems::Findings;

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
    let mut args = vec!["--model".to_owned(), uri.to_owned()];
    for (flag, value) in [("--dtype", dtype), ("--quantization", quantization)] {
        args.extend(value.into_iter().flat_map(|v| [flag.to_owned(), v]));
    }
    args.extend(serving.container.args.take().unwrap_or_default());

    serving.with_volume(
        Volume {
            name: "models".into(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
        MODELS,
    );
    let container = &mut serving.container;
    container.image = Some(image(asked, ENGINE.name, container, "vllm/vllm-openai", "latest"));
    container.image_pull_policy = Some("Always".into());
    container.args = Some(args);
    let probe = || http_probe("/health", PORT);
    container.startup_probe.get_or_insert_with(|| Probe {
        initial_delay_seconds: Some(3),
        period_seconds: Some(1),
        failure_threshold: Some(120),
        ..probe()
    });
    container.readiness_probe.get_or_insert_with(|| Probe {
        failure_threshold: Some(3),
        ..probe()
    });
    container.liveness_probe.get_or_insert_with(|| Probe {
        period_seconds: Some(30),
        timeout_seconds: Some(15),
        failure_threshold: Some(10),
        ..probe()
    });
    Some(serving)
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
