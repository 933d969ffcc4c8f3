//! Where downloaded models are kept: a directory that outlives the pod, in place of the engine's own.

use berth_crds::premlabs::aideployment::ModelCache;
use k8s_openapi::api::core::v1::{HostPathVolumeSource, PodSpec, Volume, VolumeMount};

use crate::kinds::aideployment::build::engines::Serving;
use crate::kinds::status::problems::Findings;

/// The volume that engines keep models in.
const MODELS: &str = "models";
/// Where deepspeed-mii downloads to: it has no volume for it of its own.
const HUGGING_FACE: &str = "/root/.cache/huggingface";
const PATH: &str = "spec.cache";

/// Puts the cache where the engine `name` keeps its models.
pub fn mount(cache: &ModelCache, name: &str, serving: &mut Serving, base: &mut PodSpec, findings: &mut Findings) {
    let Some(volume) = volume(cache, findings) else { return };
    let of_template = base.volumes.iter_mut().flatten();
    let mut of_models = serving
        .volumes
        .iter_mut()
        .chain(of_template)
        .filter(|v| v.name == MODELS)
        .peekable();
    if of_models.peek().is_some() {
        of_models.for_each(|v| *v = volume.clone());
        return;
    }
    let mounts = serving.container.volume_mounts.get_or_insert_default();
    if let Some(own) = mounts
        .iter()
        .find(|m| matches!(m.mount_path.as_str(), HUGGING_FACE | "/models"))
    {
        findings.ignored(
            PATH,
            format_args!("the template mounts its volume {:?} at {}", own.name, own.mount_path),
        );
    } else if name == "deepspeed-mii" {
        mounts.push(VolumeMount {
            name: MODELS.into(),
            mount_path: HUGGING_FACE.into(),
            ..VolumeMount::default()
        });
        serving.volumes.push(volume);
    } else {
        findings.ignored(
            PATH,
            format_args!("the engine {name} keeps no models in a volume; name one {MODELS:?} in the template"),
        );
    }
}

fn volume(cache: &ModelCache, findings: &mut Findings) -> Option<Volume> {
    let mut problem = |path: &str, wrong: &str, fix: &str| {
        findings.invalid(format!("{PATH}{path}"), wrong, fix);
        None
    };
    let mut volume = Volume {
        name: MODELS.into(),
        ..Volume::default()
    };
    match (&cache.persistent_volume_claim, &cache.host_path) {
        (None, None) => {
            return problem(
                "",
                "names neither a claim nor a path",
                "give persistentVolumeClaim or hostPath",
            );
        }
        (Some(_), Some(_)) => return problem("", "names a claim and a path", "remove one of the two"),
        (Some(claim), None) if claim.claim_name.is_empty() => {
            return problem(
                ".persistentVolumeClaim.claimName",
                "is empty",
                "name a claim of the namespace",
            );
        }
        (None, Some(host)) if !host.path.starts_with('/') || host.path.split('/').any(|part| part == "..") => {
            return problem(
                ".hostPath.path",
                "is no absolute path without ..",
                "write it like /var/lib/models",
            );
        }
        (Some(claim), None) => volume.persistent_volume_claim = Some(claim.clone()),
        (None, Some(host)) => {
            let type_ = host.type_.clone().unwrap_or_else(|| "DirectoryOrCreate".into());
            volume.host_path = Some(HostPathVolumeSource {
                path: host.path.clone(),
                type_: Some(type_),
            });
        }
    }
    Some(volume)
}
