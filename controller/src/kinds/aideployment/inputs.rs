//! What the pods follow from besides the AIDeployment itself. Pure.

use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use sha2::{Digest, Sha256};

use super::build::engines::ENGINES;
use super::models::{self, Maps, ResolvedModel};
use crate::cluster::ObjectKey;
use crate::kinds::status::problems::Findings;

/// Hash of what AIModelMaps give to the models; empty where none is named.
pub fn map_inputs(own: &ObjectKey, spec: &AIDeploymentSpec, maps: &Maps) -> String {
    let name = spec.engine.as_ref().map_or("", |e| e.name.as_str());
    let engine = ENGINES.iter().find(|e| e.name == name);
    let models = engine.map(|engine| models::resolve(own, spec, engine, maps, &mut Findings::default()));
    hash(&models.unwrap_or_default())
}

/// It is kept in the cluster, so it is made of values only, and must stay as it is.
fn hash(models: &[ResolvedModel]) -> String {
    let mut hash = Sha256::new();
    let mut is_any = false;
    for model in models.iter().filter(|m| m.from_map.is_some()) {
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
    use super::super::models::FromMap;
    use super::*;

    fn of(from_map: bool, model: &ResolvedModel) -> String {
        let from_map = from_map.then(|| FromMap {
            map: ("ns".into(), "m".into()),
            overridden: vec![],
        });
        hash(&[ResolvedModel {
            from_map,
            ..model.clone()
        }])
    }

    #[test]
    fn only_what_maps_give_counts_and_every_part_of_it() {
        let model = ResolvedModel {
            uri: Some("a".into()),
            ..ResolvedModel::default()
        };
        assert_eq!(of(false, &model), "");
        // It stands in clusters: another hash for the same would restart what was adopted.
        assert_eq!(of(true, &model), "3e9868e5914f7a22");
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
            assert_ne!(of(true, &other), of(true, &model));
        }
        let elsewhere = ResolvedModel {
            hostname: "n".into(),
            ..model.clone()
        };
        assert_eq!(of(true, &elsewhere), of(true, &model), "names are the spec's");
    }
}
