//! DeepSpeed-MII, as the original's image packs it: it takes a model's uri and nothing else.

use berth_crds::premlabs::aimodelmap::VariantList;
use k8s_openapi::api::core::v1::{LocalObjectReference, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Asked, Engine, ModelField, Probes, Serving, http_probe, one_model};
use crate::kinds::status::problems::Findings;

/// Port of the REST gateway in the image.
const PORT: u16 = 8080;
/// Port of the gRPC server behind it, which is there when the model is loaded.
const BACKEND: i32 = 50051;
/// Pull secret of pods whose template names none.
const PULL_SECRET: &str = "regcred-dockerhub";

/// DeepSpeed-MII.
pub const ENGINE: Engine = Engine {
    name: "deepspeed-mii",
    options: &["imageRepository", "imageTag"],
    model_fields: &[ModelField::Uri],
    variants: Some(VariantList::DeepspeedMii),
    read,
};

fn read(asked: &Asked<'_>, findings: &mut Findings) -> Option<Serving> {
    let spec = asked.spec;
    let (_, uri) = one_model(ENGINE.name, asked, findings)?;
    let mut serving = Serving::on_port(PORT, spec, findings).on_template(spec);
    serving.image(asked, ENGINE.name, "premai/deepspeed-mii", "latest");
    serving.args(["--uri", uri].map(str::to_owned).into());
    serving.probes(probes());
    serving.shared_memory(asked.gpus);
    serving.image_pull_secrets = vec![LocalObjectReference {
        name: PULL_SECRET.into(),
    }];
    Some(serving)
}

fn probes() -> Probes {
    Probes {
        startup: Probe {
            tcp_socket: Some(TCPSocketAction {
                port: IntOrString::Int(BACKEND),
                host: None,
            }),
            initial_delay_seconds: Some(30),
            period_seconds: Some(5),
            failure_threshold: Some(120),
            ..Probe::default()
        },
        readiness: Probe {
            failure_threshold: Some(3),
            ..http_probe("/healthz", PORT)
        },
        liveness: Probe {
            period_seconds: Some(30),
            timeout_seconds: Some(15),
            failure_threshold: Some(10),
            ..http_probe("/healthz", PORT)
        },
    }
}
