use kube::core::DeserializeGuard;
use serde_json::{Value, json};

use super::*;
use crate::kinds::children::subset::pruned;
use crate::kinds::status::problems::Problems;
use crate::kinds::watch::{Guarded, News};

fn map(name: &str, spec: Value) -> AIModelMap {
    serde_json::from_value(json!({
        "apiVersion": "premlabs.io/v1alpha1", "kind": "AIModelMap",
        "metadata": {"name": name, "namespace": "shop", "uid": "uid-of-it", "generation": 7},
        "spec": spec,
    }))
    .unwrap()
}

fn built(name: &str, spec: Value) -> Option<Value> {
    let validated = validate(&map(name, spec)).unwrap_or_else(|p| panic!("{p}"));
    build::build(&validated).map(|object| pruned(serde_json::to_value(object).unwrap()))
}

/// K1, and the two lists whose keys the original got wrong.
#[test]
fn each_config_file_has_its_key_and_the_prefix_is_the_engine() {
    let with =
        |variant: &str| json!({"variant": variant, "uri": "u", "engineConfigFile": format!("name: {variant}\n")});
    let spec = json!({
        "localai": [with("variant1"), with("variant2"), {"variant": "bare", "uri": "u"}, {"variant": "blank", "engineConfigFile": " \n"}],
        "vllm": [with("variant1")],
        "deepspeed-mii": [with("variant1")],
        "tensor_rt": [with("variant1")],
    });
    assert_eq!(
        built("phi", spec).unwrap(),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "phi", "namespace": "shop",
                "labels": {"mlcontroller.premlabs.io/aimodelmap": "phi"},
                "annotations": {"mlcontroller.premlabs.io/aimodelmap": "phi"}},
            "data": {
                "localai-variant1-engineConfigFile": "name: variant1\n",
                "localai-variant2-engineConfigFile": "name: variant2\n",
                "vllm-variant1-engineConfigFile": "name: variant1\n",
                "deepspeed-mii-variant1-engineConfigFile": "name: variant1\n",
                "triton-variant1-engineConfigFile": "name: variant1\n",
            },
        })
    );
}

#[test]
fn without_config_files_there_is_no_config_map() {
    assert_eq!(built("phi", json!({})), None);
    assert_eq!(built("phi", json!({"vllm": [{"variant": "a", "uri": "u"}]})), None);
    // A name that no label can have is no problem then.
    assert_eq!(built(&"a".repeat(64), json!({"vllm": [{"variant": "a"}]})), None);
}

fn problems(name: &str, spec: Value) -> Problems {
    validate(&map(name, spec)).unwrap_err()
}

#[test]
fn every_problem_names_its_field() {
    let file = |variant: &str, bytes: usize| json!({"variant": variant, "engineConfigFile": "x".repeat(bytes)});
    let long = "v".repeat(240);
    let name = "n".repeat(64);
    let cases: Vec<(&str, &str, Value, &[&str])> = vec![
        (
            "duplicates",
            "m",
            json!({"vllm": [{"variant": "a"}, {"variant": "b"}, {"variant": "a"}, {"variant": "a"}], "localai": [{"variant": "a"}]}),
            &[
                "spec.vllm[2].variant: \"a\" is the name of spec.vllm[0] too",
                "spec.vllm[3].variant: \"a\" is the name of spec.vllm[0] too",
            ],
        ),
        (
            "keys",
            "m",
            json!({"deepspeed-mii": [file(&long, 1), {"variant": long.clone() + "x"}], "tensor_rt": [file("a b", 1), file("", 1)]}),
            &[
                "spec.deepspeed-mii[0].variant: \"deepspeed-mii-vvv",
                "spec.tensor_rt[0].variant: \"triton-a b-engineConfigFile\"",
            ],
        ),
        (
            "size",
            "m",
            json!({"localai": [file("a", 1 << 19), file("b", 1 << 19)], "vllm": [file("c", 1), file("d", 1)]}),
            &["spec.vllm[0].engineConfigFile: with this one the configuration files have 1048577 bytes"],
        ),
        (
            "name",
            &name,
            json!({"localai": [file("a", 1)]}),
            &["metadata.name: \"nnn"],
        ),
    ];
    for (case, name, spec, want) in cases {
        let problems = problems(name, spec);
        let lines: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.path, p.text)).collect();
        assert_eq!(lines.len(), want.len(), "{case}: {lines:#?}");
        for (line, start) in lines.iter().zip(want) {
            assert!(
                line.starts_with(start),
                "{case}: {line:?} does not start with {start:?}"
            );
            assert!(line.contains("; "), "{case}: {line:?} does not say what to do");
        }
    }
    let full = json!({"localai": [file("a", 1 << 19), file("b", 1 << 19)]});
    assert!(validate(&map("m", full)).is_ok(), "1 MiB fits");
}

#[test]
fn fields_that_the_engine_does_not_read_are_listed() {
    let all = json!([{"variant": "a", "uri": "u", "quantization": "awq", "dataType": "float16"}, {"variant": "b", "quantization": ""}]);
    let ignored = |list: &str| validate(&map("m", json!({list: all}))).unwrap().ignored;
    assert_eq!(ignored("vllm"), Vec::<String>::new());
    assert_eq!(
        ignored("tensor_rt"),
        [
            "spec.tensor_rt[0].quantization: the engine triton does not read it",
            "spec.tensor_rt[0].dataType: the engine triton does not read it"
        ]
    );
}

#[test]
fn the_condition_says_how_it_stands() {
    use berth_crds::conditions::{Type, find};

    let told = |acceptance: Acceptance| {
        let status = status::status(&View {
            generation: Some(7),
            acceptance: &acceptance,
            before: &AIModelMapStatus::default(),
            now: jiff::Timestamp::UNIX_EPOCH,
        });
        let condition = find(&status.conditions, Type::Accepted).unwrap().clone();
        assert_eq!(condition.observed_generation, Some(7));
        format!("{} {}: {}", condition.status, condition.reason, condition.message)
    };
    let twice = json!({"vllm": [{"variant": "a"}, {"variant": "a"}]});
    for (acceptance, want) in [
        (Acceptance::Valid(vec![]), "True Valid: "),
        (
            Acceptance::Valid(vec!["spec.x: y".into()]),
            "True IgnoredFields: without effect: spec.x: y",
        ),
        (
            Acceptance::Invalid(problems("m", twice)),
            "False InvalidSpec: spec.vllm[1].variant: ",
        ),
        (
            Acceptance::Paused,
            "Unknown Paused: the annotation berth.dev/paused is set",
        ),
        (Acceptance::NameTaken("t".into()), "False NameTaken: t"),
        (Acceptance::ApplyFailed("f".into()), "False ApplyFailed: f"),
    ] {
        let told = told(acceptance);
        assert!(told.starts_with(want), "{told:?} does not start with {want:?}");
    }
}

fn guarded(change: impl FnOnce(&mut AIModelMap)) -> Arc<Guarded<AIModelMap>> {
    let mut object = map("phi", json!({}));
    change(&mut object);
    Arc::new(DeserializeGuard(Ok(object)))
}

#[test]
fn those_who_refer_to_a_map_hear_of_what_changes_its_meaning_and_of_nothing_else() {
    let told = Arc::new(parking_lot::Mutex::new(0));
    let readers = Readers::new({
        let told = told.clone();
        move |key| {
            assert_eq!(key.1, "phi");
            *told.lock() += 1;
        }
    });
    let heard = |news: News<'_, AIModelMap>| {
        readers.news(&news);
        std::mem::take(&mut *told.lock())
    };
    let annotated = |key: &str| {
        let annotations = [(key.to_owned(), "*".to_owned())];
        guarded(move |m| m.metadata.annotations = Some(annotations.into()))
    };
    let plain = guarded(|_| {});
    assert_eq!(heard(News::Is(&plain)), 1, "made");
    assert_eq!(heard(News::Is(&plain)), 0, "the same");
    assert_eq!(heard(News::Is(&annotated("example.com/note"))), 0, "a note");
    let reported = guarded(|m| m.status = Some(AIModelMapStatus::default()));
    assert_eq!(heard(News::Is(&reported)), 0, "our own status");
    assert_eq!(
        heard(News::Is(&guarded(|m| m.metadata.generation = Some(8)))),
        1,
        "an edit"
    );
    assert_eq!(heard(News::Is(&annotated(names::ALLOW_FROM))), 1, "a grant");
    let again = guarded(|m| m.metadata.uid = Some("other".into()));
    assert_eq!(heard(News::Is(&again)), 1, "made anew");
    assert_eq!(heard(News::All(&[again])), 0, "listed the same");
    assert_eq!(heard(News::All(&[plain])), 1, "changed while nobody looked");
    assert_eq!(heard(News::All(&[])), 1, "deleted while nobody looked");
    assert_eq!(heard(News::Gone(&("shop".into(), "phi".into()))), 1, "deleted");
}
