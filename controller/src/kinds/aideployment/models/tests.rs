use kube::core::DeserializeGuard;
use serde_json::{Value, json};

use super::*;
use crate::kinds::aideployment::build::engines::ENGINES;
use crate::kinds::aideployment::fixtures::{from_json, maps, model_map};

fn engine(name: &str) -> &'static Engine {
    ENGINES.iter().copied().find(|e| e.name == name).unwrap()
}

fn resolved(models: Value, maps: &Maps) -> (Vec<ResolvedModel>, Findings) {
    let object = from_json("Aid_1.x", json!({"engine": {"name": "vllm"}, "models": models}));
    let mut findings = Findings::default();
    let own = ("shop".to_owned(), "Aid_1.x".to_owned());
    let models = resolve(&own, &object.spec, engine("vllm"), maps, &mut findings);
    (models, findings)
}

fn reference(name: &str, variant: &str) -> Value {
    json!({"modelMapRef": {"name": name, "variant": variant}})
}

/// A map with a variant `full` and, in the list of another engine, `other`.
fn phi() -> Maps {
    maps([model_map(
        "shop",
        "Phi_2.0",
        json!({
            "vllm": [
                {"variant": "full", "uri": " microsoft/phi-2 ", "quantization": "awq", "dataType": "float16", "engineConfigFile": " a: b\n"},
                {"variant": "empty", "uri": "", "quantization": " "},
                {"variant": "full", "uri": "a/second"},
            ],
            "localai": [{"variant": "other", "uri": "u"}],
        }),
    )])
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

#[test]
fn a_reference_takes_what_the_map_says() {
    let (models, findings) = resolved(json!([{"uri": "inline/one"}, reference("Phi_2.0", "full")]), &phi());
    assert!(findings.problems.is_empty(), "{}", findings.problems);
    assert_eq!(
        models,
        [
            ResolvedModel {
                index: 0,
                name: "Aid_1.x".into(),
                variant: INLINE.into(),
                hostname: "aid-1-x-model".into(),
                uri: text("inline/one"),
                ..ResolvedModel::default()
            },
            ResolvedModel {
                index: 1,
                name: "Phi_2.0".into(),
                variant: "full".into(),
                hostname: "phi-2-0-full".into(),
                // The first of two variants of that name.
                uri: text("microsoft/phi-2"),
                quantization: text("awq"),
                data_type: text("float16"),
                engine_config_file: text(" a: b\n"),
                from_map: Some(FromMap {
                    map: ("shop".into(), "Phi_2.0".into()),
                    overridden: vec![],
                }),
            },
        ]
    );
}

#[test]
fn what_the_aideployment_sets_wins_field_by_field() {
    let mut model = reference("Phi_2.0", "full");
    model["uri"] = json!("mine");
    model["dataType"] = json!(" ");
    model["engineConfigFile"] = json!("c: d\n");
    let (models, _) = resolved(json!([model]), &phi());
    let model = &models[0];
    assert_eq!(model.uri, text("mine"));
    assert_eq!(model.quantization, text("awq"));
    assert_eq!(model.data_type, text("float16"), "an empty value is none");
    assert_eq!(model.engine_config_file, text("c: d\n"));
    assert_eq!(model.field(ModelField::Uri), "spec.models[0].uri");
    assert_eq!(
        model.field(ModelField::DataType),
        "spec.models[0].dataType (from AIModelMap shop/Phi_2.0 variant full)"
    );

    let (models, _) = resolved(json!([reference("Phi_2.0", "empty")]), &phi());
    assert_eq!((&models[0].uri, &models[0].quantization), (&None, &None));
}

#[test]
fn every_reference_that_leads_nowhere_is_a_problem_of_its_own() {
    let models = json!([
        reference("", ""),
        reference("nobody", "full"),
        reference("Phi_2.0", "other"),
        {"modelMapRef": {"name": "Phi_2.0", "variant": "full", "namespace": "other"}},
        reference("Phi_2.0", "full"),
    ]);
    let (models, findings) = resolved(models, &phi());
    assert_eq!(models.iter().map(|m| m.index).collect::<Vec<_>>(), [4]);
    let lines: Vec<String> = findings
        .problems
        .iter()
        .map(|p| format!("{:?} {}: {}", p.reason, p.path, p.text))
        .collect();
    assert_eq!(
        lines,
        [
            "InvalidSpec spec.models[0].modelMapRef.name: is empty; name an AIModelMap's name",
            "InvalidSpec spec.models[0].modelMapRef.variant: is empty; name an AIModelMap's variant",
            "ReferenceNotFound spec.models[1].modelMapRef.name: there is no AIModelMap \"nobody\" in the namespace \"shop\"; create it, or name another",
            "ReferenceNotFound spec.models[2].modelMapRef.variant: the AIModelMap shop/Phi_2.0 has no variant \"other\" for the engine vllm: \
             spec.vllm has full, empty, full; name one of those, or add it there",
            "ReferenceNotPermitted spec.models[3].modelMapRef.namespace: the namespace \"other\" has no AIModelMap \"Phi_2.0\" that allows \
             AIDeployments of the namespace shop; annotate it there with berth.dev/allow-from=shop (more namespaces: comma-separated; all: *), \
             or copy it here; where that is done, check name and namespace",
        ]
    );
}

#[test]
fn an_unreadable_map_is_said_to_be_so() {
    let mut all = phi();
    let broken = DeserializeGuard(Err(kube::core::error_boundary::InvalidObject {
        error: "invalid type".into(),
        metadata: Default::default(),
    }));
    all.insert(("shop".into(), "broken".into()), Arc::new(broken));
    let (_, findings) = resolved(json!([reference("broken", "full")]), &all);
    assert!(
        findings.problems.to_string().contains("cannot be read: invalid type"),
        "{}",
        findings.problems
    );
    assert_eq!(findings.problems.reason(), Reason::ReferenceNotFound);
}

#[test]
fn another_namespace_takes_a_grant() {
    let asked = json!([{"modelMapRef": {"name": "m", "variant": "v", "namespace": "library"}}]);
    for (grant, permitted) in [
        (None, false),
        (Some(""), false),
        (Some("shop"), true),
        (Some("*"), true),
        (Some("other, shop ,third"), true),
        (Some("other,*"), true),
        (Some("shopping"), false),
        (Some("other"), false),
        (Some("library"), false),
    ] {
        let mut map = model_map("library", "m", json!({"vllm": [{"variant": "v", "uri": "u"}]}));
        map.metadata.annotations = grant.map(|g| [(names::ALLOW_FROM.to_owned(), g.to_owned())].into());
        let (models, findings) = resolved(asked.clone(), &maps([map]));
        assert_eq!(!models.is_empty(), permitted, "{grant:?}");
        assert_eq!(findings.problems.is_empty(), permitted, "{grant:?}");
        if !permitted {
            assert_eq!(findings.problems.reason(), Reason::ReferenceNotPermitted);
            let told = findings.problems.to_string();
            assert!(
                told.contains("annotate it there with berth.dev/allow-from=shop"),
                "{told}"
            );
            let (_, nothing_there) = resolved(asked.clone(), &maps([]));
            assert_eq!(
                (told, Reason::ReferenceNotPermitted),
                (nothing_there.problems.to_string(), nothing_there.problems.reason()),
                "whether it exists is not told"
            );
        }
    }
}

/// What is in a map that may not be read is nobody's business: no variant is named before the grant is there.
#[test]
fn a_map_without_grant_gives_nothing_away() {
    let map = model_map("library", "m", json!({"vllm": [{"variant": "secret", "uri": "u"}]}));
    let models = json!([{"modelMapRef": {"name": "m", "variant": "guess", "namespace": "library"}}]);
    let (_, findings) = resolved(models, &maps([map]));
    assert!(
        !findings.problems.to_string().contains("secret"),
        "{}",
        findings.problems
    );
}

#[test]
fn the_maps_that_a_spec_names() {
    let spec = json!({"models": [
        {"uri": "u"}, reference("a", "x"), reference("a", "y"),
        {"modelMapRef": {"name": "a", "variant": "x", "namespace": "other"}},
        {"modelMapRef": {"name": "b", "variant": "x", "namespace": ""}},
    ]});
    let named = referred("shop", &from_json("m", spec).spec);
    let named: Vec<String> = named
        .into_iter()
        .map(|(namespace, name)| format!("{namespace}/{name}"))
        .collect();
    assert_eq!(named, ["other/a", "shop/a", "shop/b"]);
}
