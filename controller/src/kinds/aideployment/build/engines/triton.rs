//! NVIDIA's Triton inference server: any number of models, downloaded into its model repository.

use berth_crds::premlabs::aimodelmap::VariantList;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Probe, Volume};

use super::download::{InitContainers, MODELS, Script, checked_uri, is_archive, is_http};
use super::{Asked, Engine, ModelField, Probes, Serving, http_probe};
use crate::kinds::status::problems::Findings;

/// Port of the HTTP endpoint.
const PORT: u16 = 8000;

/// Triton.
pub const ENGINE: Engine = Engine {
    name: "triton",
    options: &["imageRepository", "imageTag"],
    model_fields: &[ModelField::Uri],
    variants: Some(VariantList::TensorRt),
    read,
};

fn read(asked: &Asked<'_>, findings: &mut Findings) -> Option<Serving> {
    let spec = asked.spec;
    let mut serving = Serving::on_port(PORT, spec, findings).on_template(spec);
    serving.image(asked, ENGINE.name, "nvcr.io/nvidia/tritonserver", "24.01-py3");
    serving.args(["tritonserver", "--model-repository=/models"].map(str::to_owned).into());
    serving.probes(probes());
    serving.with_volume(
        Volume {
            name: "models".into(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
        MODELS,
    );

    let mut init = InitContainers::new(asked, &serving);
    for model in asked.models {
        let Some(uri) = checked_uri(model, findings) else {
            continue;
        };
        let script = if !is_http(uri) {
            findings.invalid(
                model.field(ModelField::Uri),
                format_args!("{uri:?} is no http or https URL, and triton's models are downloaded"),
                "give the URL of a model file or of a .tar, .tar.gz or .tgz with a model repository",
            );
            continue;
        } else if is_archive(uri) {
            Script::TritonArchive
        } else if has_file_name(uri) {
            Script::TritonFile
        } else {
            findings.invalid(
                model.field(ModelField::Uri),
                format_args!("{uri:?} does not end in the name of a file"),
                "give the URL of the model file itself",
            );
            continue;
        };
        init.download(&format!("init-{}", model.name), script, model, uri);
    }
    serving.init_containers = init.into_containers();
    Some(serving)
}

/// Whether the script will find a name for the file: the last part of the path.
fn has_file_name(url: &str) -> bool {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let last = path.split('/').skip(3).last();
    last.is_some_and(|name| !matches!(name, "" | "." | ".."))
}

fn probes() -> Probes {
    Probes {
        startup: Probe {
            period_seconds: Some(10),
            failure_threshold: Some(30),
            ..http_probe("/v2/health/ready", PORT)
        },
        readiness: Probe {
            initial_delay_seconds: Some(5),
            period_seconds: Some(5),
            failure_threshold: Some(3),
            ..http_probe("/v2/health/ready", PORT)
        },
        liveness: Probe {
            initial_delay_seconds: Some(15),
            period_seconds: Some(10),
            timeout_seconds: Some(25),
            failure_threshold: Some(3),
            ..http_probe("/v2/health/live", PORT)
        },
    }
}
