use berth_crds::conditions::Reason;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kinds::aideployment::build::engines::ENGINES;
use crate::kinds::aideployment::fixtures::{aideployment, defaults, from_json, maps, model_map, read, read_with};

/// A vllm spec with `deployment` as given.
fn with(deployment: &str) -> String {
    format!("{{engine: {{name: vllm}}, models: [{{uri: m}}], deployment: {deployment}}}")
}

/// A generic spec with this first container.
fn generic(container: &str, more: &str) -> String {
    format!("{{engine: {{name: generic}}, deployment: {{template: {{spec: {{containers: [{container}]}}}}}}, {more}}}")
}

#[test]
fn every_problem_names_its_field() {
    let cuda = |more: &str| with(&format!("{{accelerator: {{interface: CUDA, {more}}}}}"));
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("no engine", "{}".into(), &["spec.engine.name: is empty"]),
        ("unknown engine", "{engine: {name: foo}}".into(), &["spec.engine.name: \"foo\" is no engine; this version serves localai, vllm, deepspeed-mii, triton, generic"]),
        ("two models without uri under localai", "{engine: {name: localai}, models: [{uri: a}, {}, {uri: ' '}]}".into(), &["spec.models[1].uri: is empty", "spec.models[2].uri: is empty"]),
        ("no URL", "{engine: {name: localai}, models: [{uri: 'http://'}, {uri: 'https://x/a b'}]}".into(), &["spec.models[0].uri: \"http://\" is no URL", "spec.models[1].uri: \"https://x/a b\" is no URL"]),
        ("triton with names", "{engine: {name: triton}, models: [{uri: phi-2}, {uri: 's3://b/m.tar'}, {uri: 'https://x/y/'}, {}]}".into(), &["spec.models[0].uri: \"phi-2\" is no http or https URL", "spec.models[1].uri", "spec.models[2].uri: \"https://x/y/\" does not end in the name of a file", "spec.models[3].uri: is empty"]),
        ("deepspeed-mii without uri", "{engine: {name: deepspeed-mii}, models: [{uri: ''}]}".into(), &["spec.models[0].uri: is empty"]),
        ("no model", "{engine: {name: vllm}}".into(), &["spec.models: 0 models are given and vllm serves exactly one"]),
        ("two models", "{engine: {name: vllm}, models: [{uri: a}, {uri: b}]}".into(), &["spec.models: 2 models"]),
        ("no uri", "{engine: {name: vllm}, models: [{}]}".into(), &["spec.models[0].uri: is empty"]),
        ("two models without uri", "{engine: {name: vllm}, models: [{}, {uri: ''}]}".into(), &["spec.models: 2", "spec.models[0].uri", "spec.models[1].uri"]),
        ("a reference", "{engine: {name: vllm}, models: [{modelMapRef: {name: x, variant: z}}]}".into(), &["spec.models[0].modelMapRef.name: there is no AIModelMap \"x\""]),
        ("dtype", "{engine: {name: vllm, options: {dtype: 'a b'}}, models: [{uri: m}]}".into(), &["spec.engine.options.dtype: \"a b\""]),
        ("quantization", "{engine: {name: vllm}, models: [{uri: m, quantization: '$(x)'}]}".into(), &["spec.models[0].quantization: \"$(x)\""]),
        ("a flag as value", "{engine: {name: vllm}, models: [{uri: m, dataType: --x}]}".into(), &["spec.models[0].dataType"]),
        ("host", "{engine: {name: vllm}, models: [{uri: m}], endpoint: [{domain: 'http://x'}, {domain: 10.0.0.1}]}".into(), &["spec.endpoint[0].domain: \"http://x\"", "spec.endpoint[1].domain: \"10.0.0.1\""]),
        ("replicas", with("{replicas: -1}"), &["spec.deployment.replicas: -1 is negative"]),
        ("interface", with("{accelerator: {interface: OpenCL}}"), &["spec.deployment.accelerator.interface: \"OpenCL\" is not supported; no device plugin"]),
        ("no interface", with("{accelerator: {interface: cuda}}"), &["spec.deployment.accelerator.interface: \"cuda\" is not supported; use CUDA or ROCm"]),
        ("MIG profile", cuda("migProfile: small"), &["spec.deployment.accelerator.migProfile: \"small\" is no MIG profile"]),
        ("MIG against whole GPUs", with("{accelerator: {interface: CUDA, migProfile: 1g.10gb}, resources: {limits: {nvidia.com/gpu: 1}}}"), &["spec.deployment.accelerator.migProfile: 1g.10gb contradicts the resource nvidia.com/gpu"]),
        ("MIG against another profile", with("{accelerator: {interface: CUDA, migProfile: 1g.10gb}, resources: {limits: {nvidia.com/mig-2g.20gb: 1}}}"), &["spec.deployment.accelerator.migProfile: 1g.10gb contradicts the resource nvidia.com/mig-2g.20gb"]),
        ("MIG without CUDA", with("{accelerator: {interface: ROCm, migProfile: 1g.10gb}}"), &["spec.deployment.accelerator.migProfile: is given, and only CUDA"]),
        ("memory of a slice", cuda("migProfile: 1g.10gb, memory: 12Gi"), &["spec.deployment.accelerator.memory: 12Gi is more than a slice nvidia.com/mig-1g.10gb has"]),
        ("half a slice", with("{resources: {limits: {nvidia.com/mig-1g.10gb: 500m}}}"), &["spec.deployment.resources[nvidia.com/mig-1g.10gb], or that of the template's container: \"500m\""]),
        ("claims", with("{resources: {claims: [{name: gpu}]}}"), &["spec.deployment.resources.claims: \"gpu\" is no resource claim of the pod"]),
        ("no startup at all", with("{startupTimeoutSeconds: 0}"), &["spec.deployment.startupTimeoutSeconds: 0 is no number"]),
        ("endless startup", with("{startupTimeoutSeconds: 2000000000}"), &["spec.deployment.startupTimeoutSeconds: 2000000000 is no number"]),
        ("a cache of nothing", "{engine: {name: vllm}, models: [{uri: m}], cache: {}}".into(), &["spec.cache: names neither a claim nor a path"]),
        ("a cache of both", "{engine: {name: vllm}, models: [{uri: m}], cache: {persistentVolumeClaim: {claimName: c}, hostPath: {path: /m}}}".into(), &["spec.cache: names a claim and a path"]),
        ("a claim without name", "{engine: {name: vllm}, models: [{uri: m}], cache: {persistentVolumeClaim: {claimName: ''}}}".into(), &["spec.cache.persistentVolumeClaim.claimName: is empty"]),
        ("a path that leads elsewhere", "{engine: {name: vllm}, models: [{uri: m}], cache: {hostPath: {path: /m/../etc}}}".into(), &["spec.cache.hostPath.path: is no absolute path"]),
        ("a Gateway without name", "{engine: {name: vllm}, models: [{uri: m}], endpoint: [{domain: a}], gateway: {parentRefs: [{name: ''}]}}".into(), &["spec.gateway.parentRefs[0].name: is empty"]),
        ("no Gateway", "{engine: {name: vllm}, models: [{uri: m}], endpoint: [{domain: a}], gateway: {parentRefs: []}}".into(), &["spec.gateway.parentRefs: is empty"]),
        ("count", cuda("count: 0"), &["spec.deployment.accelerator.count: 0 is no number of GPUs"]),
        ("class and classes", cuda("class: h100, classes: [a100]"), &["spec.deployment.accelerator.classes: is given together with class"]),
        ("class", cuda("class: H100"), &["spec.deployment.accelerator.class: \"H100\" is no GPU class; write \"h100\""]),
        ("classes", cuda("classes: [h100, 'a,b', '']"), &["spec.deployment.accelerator.classes[1]", "spec.deployment.accelerator.classes[2]"]),
        ("memory", cuda("memory: lots"), &["spec.deployment.accelerator.memory: \"lots\""]),
        ("no memory", cuda("memory: 0"), &["spec.deployment.accelerator.memory: \"0\""]),
        ("minVersion", cuda("minVersion: {major: -1}"), &["spec.deployment.accelerator.minVersion: -1.0"]),
        ("GPUs without accelerator", with("{resources: {requests: {nvidia.com/gpu: 1}}}"), &["spec.deployment.resources.requests[nvidia.com/gpu]: asks for GPUs, and no accelerator is given"]),
        ("half a GPU", with("{accelerator: {interface: CUDA}, resources: {limits: {nvidia.com/gpu: 500m}}}"), &["spec.deployment.resources[nvidia.com/gpu], or that of the template's container: \"500m\""]),
        ("quantities", with("{resources: {limits: {cpu: many}, requests: {memory: -1Gi}}}"), &["spec.deployment.resources.requests[memory]: -1Gi is negative", "spec.deployment.resources.limits[cpu]: \"many\" is no quantity"]),
        ("probe numbers", with("{startupProbe: {periodSeconds: -1, successThreshold: 2}, livenessProbe: {successThreshold: 3}}"), &["spec.deployment.startupProbe.periodSeconds: -1", "spec.deployment.startupProbe.successThreshold", "spec.deployment.livenessProbe.successThreshold"]),
        ("class against selector", with("{accelerator: {interface: CUDA, class: h100}, placement: {policy: Scheduler}, nodeSelector: {berth.dev/gpu-class: t4}}"), &["spec.deployment.nodeSelector[berth.dev/gpu-class]: \"t4\" contradicts"]),
        ("second serving", with("{template: {spec: {containers: [{name: serving}, {name: serving}]}}}"), &["spec.deployment.template.spec.containers[1].name"]),
        ("generic without template", "{engine: {name: generic}}".into(), &["spec.deployment.template.spec.containers: is empty"]),
        ("generic without containers", "{engine: {name: generic}, deployment: {template: {spec: {containers: []}}}}".into(), &["spec.deployment.template.spec.containers: is empty"]),
        ("generic without image", generic("{name: a}", "endpoint: []"), &["containers[0].image: is empty"]),
        ("generic with a map", generic("{name: a, image: b}", "models: [{modelMapRef: {name: x, variant: z}}]"), &["spec.models[0].modelMapRef: the engine generic takes no models"]),
        ("generic port", generic("{name: a, image: b}", "endpoint: [{domain: x, port: 70000}, {domain: z, port: 0}]"), &["spec.endpoint[0].port: 70000", "spec.endpoint[1].port: 0"]),
        ("generic without port", generic("{name: a, image: b}", "endpoint: [{domain: x}]"), &["spec.endpoint[0].port: is not set"]),
        ("no such probe", "{engine: {name: generic}, deployment: {livenessProbe: {periodSeconds: 1}, template: {spec: {containers: [{name: a, image: b}]}}}}".into(), &["spec.deployment.livenessProbe: overrides timings of a probe that the container does not have"]),
        ("all at once", "{engine: {name: foo}, endpoint: [{domain: 'A'}], deployment: {replicas: -1, accelerator: {interface: OpenCL, classes: [X]}}}".into(), &["spec.engine.name", "spec.endpoint[0].domain", "spec.deployment.replicas", "spec.deployment.accelerator.interface", "spec.deployment.accelerator.classes[0]"]),
    ];
    for (name, spec, want) in cases {
        let problems = read(&aideployment("m", &spec)).expect_err(name);
        let lines: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.path, p.text)).collect();
        assert_eq!(lines.len(), want.len(), "{name}: {lines:#?}");
        for (line, start) in lines.iter().zip(want) {
            assert!(line.contains(start), "{name}: {line:?} lacks {start:?}");
            assert!(line.contains("; "), "{name}: {line:?} does not say what to do");
        }
    }
}

#[test]
fn reasons_tell_what_kind_of_problem_it_is() {
    let reason = |spec: &str| read(&aideployment("m", spec)).unwrap_err().reason();
    assert_eq!(
        reason("{engine: {name: ollama}, deployment: {replicas: -1}}"),
        Reason::UnsupportedEngine
    );
    assert_eq!(
        reason("{engine: {name: vllm}, models: [{modelMapRef: {name: a, variant: b}}]}"),
        Reason::ReferenceNotFound
    );
    assert_eq!(reason(&with("{replicas: -1}")), Reason::InvalidSpec);
}

/// V5: what a map says is read as if it stood here, and what is wrong with it names the map.
#[test]
fn a_model_of_a_map_is_checked_like_one_written_here() {
    let read = |variant: Value| {
        let spec = "{engine: {name: vllm}, models: [{modelMapRef: {name: phi, variant: original}}]}";
        let all = maps([model_map("shop", "phi", json!({"vllm": [variant]}))]);
        read_with(&aideployment("m", spec), &defaults(), &all)
    };
    let fine = json!({"variant": "original", "uri": "microsoft/phi-2", "dataType": "float16", "engineConfigFile": "published only"});
    let model = read(fine).unwrap();
    assert_eq!(
        model.serving.container.args.unwrap(),
        ["--model", "microsoft/phi-2", "--dtype", "float16"]
    );
    assert_eq!(
        model.ignored,
        Vec::<String>::new(),
        "a map is for many; it tells of its own fields"
    );
    for (variant, want) in [
        (
            json!({"variant": "original"}),
            "spec.models[0].uri (from AIModelMap shop/phi variant original): is empty",
        ),
        (
            json!({"variant": "original", "uri": "u", "quantization": "a b"}),
            "spec.models[0].quantization (from AIModelMap shop/phi variant original): \"a b\"",
        ),
    ] {
        let told = read(variant).unwrap_err().to_string();
        assert!(told.starts_with(want), "{told}");
    }
}

#[test]
fn names_must_be_fit_for_a_service() {
    for (name, fits) in [
        ("vllm-h100", true),
        ("a", true),
        ("llama-3.1-8b", false),
        ("8b", false),
        ("a-", false),
        ("A", false),
        (&"a".repeat(63), true),
        (&"a".repeat(64), false),
    ] {
        let result = read(&aideployment(name, &with("{}")));
        assert_eq!(result.is_ok(), fits, "{name}");
        if let Err(problems) = result {
            assert!(problems.to_string().starts_with("metadata.name: "), "{problems}");
        }
    }
}

#[test]
fn gpus_come_from_request_then_limit_then_count_then_one() {
    let cases: &[(&str, Option<&str>)] = &[
        ("{}", None),
        ("{accelerator: {interface: CUDA}}", Some("1")),
        ("{accelerator: {interface: CUDA, count: 2}}", Some("2")),
        (
            "{accelerator: {interface: CUDA, count: 2}, resources: {limits: {nvidia.com/gpu: 4}}}",
            Some("4"),
        ),
        (
            "{accelerator: {interface: CUDA}, resources: {requests: {nvidia.com/gpu: 3}, limits: {nvidia.com/gpu: 4}}}",
            Some("3"),
        ),
        (
            "{accelerator: {interface: CUDA}, resources: {requests: {nvidia.com/gpu: '0'}}}",
            None,
        ),
        ("{resources: {limits: {nvidia.com/gpu: 4}}}", Some("4")),
        (
            "{accelerator: {interface: CUDA}, template: {spec: {containers: [{name: serving, resources: {limits: {nvidia.com/gpu: 5}}}]}}}",
            Some("5"),
        ),
        (
            "{accelerator: {interface: CUDA}, resources: {requests: {nvidia.com/gpu: 2e0}}}",
            Some("2"),
        ),
    ];
    for (deployment, want) in cases {
        let model = read(&aideployment("m", &with(deployment))).unwrap();
        assert_eq!(model.uses_gpus, want.is_some(), "{deployment}");
        assert_eq!(
            matches!(model.placing, Placing::Managed(_)),
            want.is_some(),
            "{deployment}"
        );
        let resources = model.serving.container.resources.unwrap_or_default();
        for amounts in [resources.requests, resources.limits]
            .into_iter()
            .filter(|_| want.is_some())
        {
            assert_eq!(amounts.unwrap()["nvidia.com/gpu"].0, want.unwrap(), "{deployment}");
        }
    }
}

#[test]
fn only_fields_of_ours_become_annotations() {
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("{accelerator: {interface: CUDA, minVersion: {major: 8}}}", &[]),
        (
            "{accelerator: {interface: CUDA, class: h100}}",
            &[("berth.dev/gpu-class", "h100")],
        ),
        (
            "{accelerator: {interface: CUDA, classes: [h100, a100, h100], memory: 24Gi}}",
            &[("berth.dev/gpu-class", "h100,a100"), ("berth.dev/gpu-memory", "24Gi")],
        ),
        (
            "{accelerator: {interface: CUDA, minVersion: {major: 8, minor: 6}}, placement: {onNoFit: Release}}",
            &[
                ("berth.dev/compute-capability", "8.6"),
                ("berth.dev/on-no-fit", "Release"),
            ],
        ),
    ];
    for (deployment, want) in cases {
        let model = read(&aideployment("m", &with(deployment))).unwrap();
        let want = want.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(model.placing, Placing::Managed(want), "{deployment}");
    }
}

#[test]
fn the_policy_is_the_installations_unless_the_object_says() {
    let policy = |deployment: &str, policy| {
        let object = aideployment("m", &with(deployment));
        let defaults = Defaults { policy, ..defaults() };
        read_with(&object, &defaults, &Maps::default()).unwrap().placing
    };
    let gpu = "{accelerator: {interface: CUDA}}";
    assert_eq!(policy(gpu, PlacementPolicy::Scheduler), Placing::Unmanaged);
    let managed = "{accelerator: {interface: CUDA}, placement: {policy: Managed}}";
    assert!(matches!(
        policy(managed, PlacementPolicy::Scheduler),
        Placing::Managed(_)
    ));
    let scheduler = "{accelerator: {interface: CUDA, class: t4}, placement: {policy: Scheduler}}";
    assert!(matches!(
        policy(scheduler, PlacementPolicy::Managed),
        Placing::Scheduler { .. }
    ));
    assert_eq!(
        policy("{placement: {policy: Managed}}", PlacementPolicy::Managed),
        Placing::Unmanaged
    );
}

#[test]
fn fields_without_effect_are_listed() {
    let spec = "{engine: {name: vllm, options: {dtipe: x}}, endpoint: [{domain: a, port: 9}], \
        models: [{uri: m, engineConfigFile: c, options: {a: b}}], \
        deployment: {labels: {mlcontroller.premlabs.io/ai-deployment: other}, readinessProbe: {terminationGracePeriodSeconds: 3}, \
        accelerator: {interface: CUDA, memory: 1Gi}, placement: {policy: Scheduler, onNoFit: Wait}}}";
    let model = read(&aideployment("m", spec)).unwrap();
    let paths: Vec<&str> = model.ignored.iter().filter_map(|i| i.split(": ").next()).collect();
    assert_eq!(
        paths,
        [
            "spec.engine.options.dtipe",
            "spec.models[0].engineConfigFile",
            "spec.models[0].options",
            "spec.endpoint[0].port",
            "spec.deployment.labels[mlcontroller.premlabs.io/ai-deployment]",
            "spec.deployment.readinessProbe.terminationGracePeriodSeconds",
            "spec.deployment.accelerator.memory",
            "spec.deployment.placement.onNoFit",
        ]
    );
    assert!(read(&aideployment("m", &with("{}"))).unwrap().ignored.is_empty());
}

/// That engine has no volume for what it downloads.
#[test]
fn the_cache_of_deepspeed_mii_is_mounted_where_it_downloads_to() {
    let cache = serde_json::from_value(json!({"hostPath": {"path": "/m", "type": "Directory"}})).unwrap();
    let (mut serving, mut base, mut findings) = (Serving::default(), PodSpec::default(), Findings::default());
    cache::mount(&cache, "deepspeed-mii", &mut serving, &mut base, &mut findings);
    assert_eq!(findings, Findings::default());
    let mounts = serving.container.volume_mounts.unwrap();
    assert_eq!(mounts[0].mount_path, "/root/.cache/huggingface");
    assert_eq!(mounts[0].name, serving.volumes[0].name);
    assert_eq!(
        serving.volumes[0].host_path.as_ref().unwrap().type_.as_deref(),
        Some("Directory")
    );
}

/// Boxed, here and below: the trees of values are built on the stack. Text that specs are made of: what the code looks at, and what it does not expect.
fn text() -> BoxedStrategy<String> {
    prop_oneof![
        prop::sample::select(vec![
            "",
            "vllm",
            "generic",
            "localai",
            "CUDA",
            "serving",
            "h100",
            "nvidia.com/gpu",
            "1",
            "-1",
            "1e999",
            "1.5",
            "16Gi",
            "Managed",
            "a.example.com",
            "*",
            "m",
            "8080",
            "http",
            "\u{0}",
            "é",
            "0x1",
            "Ki",
            "e",
            "--",
            "1EE",
            "9223372036854775807Gi",
            "ROCm",
            "1g.10gb",
            "1g.10gb+me",
            "nvidia.com/mig-1g.10gb",
            "amd.com/gpu",
            "/var/lib/models",
            "..",
        ])
        .prop_map(str::to_owned),
        ".{0,12}",
    ]
    .boxed()
}

fn number() -> BoxedStrategy<i32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(-1),
        Just(8080),
        Just(i32::MIN),
        Just(i32::MAX),
        any::<i32>()
    ]
    .boxed()
}

fn map() -> BoxedStrategy<Value> {
    prop::collection::btree_map(text(), text(), 0..3)
        .prop_map(|m| json!(m))
        .boxed()
}

fn container() -> BoxedStrategy<Value> {
    let port = prop_oneof![number().prop_map(|n| json!(n)), text().prop_map(|t| json!(t))];
    (text(), text(), prop::option::of(port), number(), map(), map()).prop_map(|(name, image, port, declared, requests, limits)| {
        let mut c = json!({"name": name, "image": image, "ports": [{"containerPort": declared}],
            "resources": {"requests": requests, "limits": limits}, "env": [{"name": "A"}, {"name": "A", "value": image}]});
        if let Some(port) = port {
            c["livenessProbe"] = json!({"httpGet": {"port": port}});
        }
        c
    })
    .boxed()
}

fn spec() -> BoxedStrategy<Value> {
    let probe = || {
        (number(), number(), number())
            .prop_map(|(a, b, c)| json!({"initialDelaySeconds": a, "successThreshold": b, "periodSeconds": c}))
    };
    let accelerator = (
        text(),
        prop::option::of(text()),
        prop::collection::vec(text(), 0..3),
        text(),
        number(),
        number(),
        prop::option::of(text()),
    )
        .prop_map(|(interface, class, classes, memory, count, major, profile)| {
            json!({"interface": interface, "class": class, "classes": classes, "memory": memory, "count": count,
                "minVersion": {"major": major, "minor": major}, "migProfile": profile})
        });
    let placement = prop::sample::select(vec![
        json!(null),
        json!({}),
        json!({"policy": "Scheduler"}),
        json!({"policy": "Managed", "onNoFit": "Wait"}),
    ]);
    let deployment = (
        prop::option::of(accelerator),
        (map(), map(), map(), map()),
        number(),
        prop::option::of(prop::collection::vec(container(), 0..3)),
        (prop::option::of(probe()), prop::option::of(probe())),
        (placement, prop::option::of(number())),
    )
        .prop_map(|(accelerator, (requests, limits, labels, selector), replicas, containers, (startup, liveness), (placement, timeout))| {
            json!({"startupTimeoutSeconds": timeout, "accelerator": accelerator, "resources": {"requests": requests, "limits": limits}, "labels": labels, "annotations": labels,
                "nodeSelector": selector, "replicas": replicas, "template": containers.map(|c| json!({"spec": {"containers": c}})),
                "startupProbe": startup, "livenessProbe": liveness, "placement": placement})
        });
    let engine = (
        prop_oneof![
            prop::sample::select(ENGINES.iter().map(|e| e.name.to_owned()).collect::<Vec<_>>()),
            text()
        ],
        map(),
    )
        .prop_map(|(name, options)| json!({"name": name, "options": options}));
    let endpoint =
        (text(), prop::option::of(number())).prop_map(|(domain, port)| json!({"domain": domain, "port": port}));
    let cache = (prop::option::of(text()), prop::option::of(text())).prop_map(|(claim, path)| {
        json!({"persistentVolumeClaim": claim.map(|c| json!({"claimName": c})), "hostPath": path.map(|p| json!({"path": p}))})
    });
    let gateway = prop::collection::vec(text(), 0..2)
        .prop_map(|names| json!({"parentRefs": names.into_iter().map(|n| json!({"name": n})).collect::<Vec<_>>()}));
    let reference = prop::option::of((text(), text(), prop::option::of(text())));
    let model =
        (prop::option::of(text()), prop::option::of(text()), reference).prop_map(|(uri, quantization, reference)| {
            let reference = reference
                .map(|(name, variant, namespace)| json!({"name": name, "variant": variant, "namespace": namespace}));
            json!({"uri": uri, "quantization": quantization, "modelMapRef": reference})
        });
    (
        (prop::option::of(cache), prop::option::of(gateway)),
        prop::option::of(engine),
        prop::option::of(deployment),
        prop::collection::vec(endpoint, 0..3),
        prop::collection::vec(model, 0..3),
        map(),
    )
        .prop_map(|((cache, gateway), engine, deployment, endpoint, models, labels)| {
            let mut spec = json!({"cache": cache, "gateway": gateway, "engine": engine, "deployment": deployment, "endpoint": endpoint, "models": models,
                "service": {"labels": labels, "annotations": labels}, "ingress": {"labels": labels, "tls": true}});
            // The API server takes nulls out before they are stored.
            drop_nulls(&mut spec);
            spec
        })
    .boxed()
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a spec says, it gives either problems or children that are like themselves.
    #[test]
    fn no_spec_panics(name in text(), spec in spec()) {
        use crate::kinds::aideployment::build::build;
        use crate::kinds::aideployment::fetch::Observed;
        use crate::kinds::children::apply::Intent;
        use crate::kinds::children::Kind;
        use crate::kinds::children::subset::differences;

        let object = from_json(&name, spec);
        let all = maps([model_map("shop", "m", json!({"vllm": [{"variant": "m", "uri": "u"}]}))]);
        match read_with(&object, &defaults(), &all) {
            Err(problems) => prop_assert!(!problems.is_empty()),
            Ok(model) => {
                let children = build(&model, &Observed::default());
                let value = serde_json::to_value(&children.deployment).unwrap();
                let intent = Intent::new(Kind::Deployment, &model.owner, value);
                prop_assert!(differences(&intent.body, &intent.body).is_empty());
                prop_assert!(!model.serving.service_ports.is_empty());
                prop_assert_eq!(model.serving.endpoint_ports.len(), model.hosts.len());
            }
        }
    }
}
