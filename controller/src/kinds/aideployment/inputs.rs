//! What the pods follow from besides the AIDeployment itself. Pure.

use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use sha2::{Digest, Sha256};

use super::models::ResolvedModel;

/// Hash of what AIModelMaps give to the models; empty where none is named. It is kept in the cluster, so it is made of values only, and
/// must stay as it is.
pub fn map_inputs(spec: &AIDeploymentSpec, models: &[ResolvedModel]) -> String {
    let of_maps = models.iter().filter(|m| {
        spec.models
            .get(m.index)
            .is_some_and(|given| given.model_map_ref.is_some())
    });
    let mut hash = Sha256::new();
    let mut is_any = false;
    for model in of_maps {
        is_any = true;
        let fields = [
            &model.uri,
            &model.quantization,
            &model.data_type,
            &model.engine_config_file,
        ];
        for field in fields {
            let text = field.as_deref().unwrap_or_default();
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        }
    }
    let digest = hash.finalize();
    if is_any {
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(reference: bool, model: &ResolvedModel) -> String {
        let reference = if reference { "{name: a, variant: b}" } else { "null" };
        let spec = format!("{{engine: {{name: vllm}}, models: [{{modelMapRef: {reference}}}]}}");
        let spec: AIDeploymentSpec = serde_saphyr::from_str(&spec).unwrap();
        map_inputs(&spec, std::slice::from_ref(model))
    }

    #[test]
    fn only_what_maps_give_counts_and_every_part_of_it() {
        let model = ResolvedModel {
            uri: Some("a".into()),
            ..ResolvedModel::default()
        };
        assert_eq!(hash(false, &model), "");
        // It stands in clusters: another hash for the same would restart what was adopted.
        assert_eq!(hash(true, &model), "3e9868e5914f7a22");
        for other in [
            ResolvedModel {
                uri: Some("b".into()),
                ..model.clone()
            },
            ResolvedModel {
                uri: None,
                quantization: Some("a".into()),
                ..model.clone()
            },
            ResolvedModel {
                engine_config_file: Some("x".into()),
                ..model.clone()
            },
        ] {
            assert_ne!(hash(true, &other), hash(true, &model));
        }
        let elsewhere = ResolvedModel {
            hostname: "n".into(),
            ..model.clone()
        };
        assert_eq!(hash(true, &elsewhere), hash(true, &model), "names are the spec's");
    }
}
