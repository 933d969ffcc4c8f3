//! The optional fields, and the defects of the original that a build decides on: each test is named after what it protects.

use serde_json::{Value, json};

use super::build;
use crate::kinds::aideployment::fetch::Observed;
use crate::kinds::aideployment::fixtures::{aideployment, children, defaults, read, read_with, sent};
use crate::kinds::aideployment::models::Maps;
use crate::kinds::aideployment::validate::{Defaults, Image, Validated};
use crate::kinds::children::Child;

fn vllm(more: &str) -> String {
    format!("{{engine: {{name: vllm}}, models: [{{uri: m}}], {more}}}")
}

fn model(spec: &str) -> Validated {
    read(&aideployment("m", spec)).unwrap_or_else(|problems| panic!("{problems}"))
}

fn deployment(spec: &str) -> Value {
    sent(&children("m", spec).deployment)
}

fn pod(spec: &str) -> Value {
    deployment(spec).pointer("/spec/template/spec").unwrap().clone()
}

fn ignored(spec: &str) -> Vec<String> {
    let paths = model(spec).ignored;
    paths
        .iter()
        .filter_map(|i| i.split(": ").next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn slices_are_asked_as_the_device_plugin_names_them() {
    let cases = [
        (
            "{accelerator: {interface: CUDA, migProfile: 1g.10gb}}",
            json!({"nvidia.com/mig-1g.10gb": "1"}),
        ),
        (
            "{accelerator: {interface: CUDA, migProfile: 1g.10gb+me, count: 2, memory: 8Gi}}",
            json!({"nvidia.com/mig-1g.10gb.me": "2"}),
        ),
        (
            "{accelerator: {interface: CUDA, migProfile: 1g.10gb, count: 2}, resources: {limits: {nvidia.com/mig-1g.10gb: 3}}}",
            json!({"nvidia.com/mig-1g.10gb": "3"}),
        ),
        // Without the field: the resource says enough.
        (
            "{resources: {limits: {nvidia.com/mig-2g.20gb: 1}}}",
            json!({"nvidia.com/mig-2g.20gb": "1"}),
        ),
        (
            "{accelerator: {interface: CUDA}, resources: {requests: {nvidia.com/mig-2g.20gb: 1}}}",
            json!({"nvidia.com/mig-2g.20gb": "1"}),
        ),
    ];
    for (options, want) in cases {
        let pod = pod(&vllm(&format!("deployment: {options}")));
        let resources = &pod["containers"][0]["resources"];
        assert_eq!(resources["requests"], want, "{options}");
        assert_eq!(resources["limits"], want, "{options}");
        assert_eq!(pod["runtimeClassName"], "nvidia", "{options}");
        assert_eq!(pod["schedulingGates"][0]["name"], "berth.dev/placement", "{options}");
        assert!(
            !pod.to_string().contains("gpu-memory"),
            "a slice has its memory to itself"
        );
    }
}

#[test]
fn rocm_asks_amds_gpus_without_nvidias_runtime() {
    let pod = pod(&vllm(
        "deployment: {accelerator: {interface: ROCm, count: 2, class: mi300x}}",
    ));
    assert_eq!(
        pod["containers"][0]["resources"],
        json!({"requests": {"amd.com/gpu": "2"}, "limits": {"amd.com/gpu": "2"}})
    );
    assert_eq!(pod.get("runtimeClassName"), None);
    assert_eq!(pod["schedulingGates"][0]["name"], "berth.dev/placement");
}

#[test]
fn min_version_is_a_preference_where_a_field_of_ours_is_used_and_told_of_where_none_is() {
    let plain = vllm("deployment: {accelerator: {interface: CUDA, minVersion: {major: 8}}}");
    assert_eq!(
        pod(&plain).get("affinity"),
        None,
        "an unchanged manifest gives the original's pod"
    );
    assert_eq!(ignored(&plain), ["spec.deployment.accelerator.minVersion"]);

    let ours = vllm("deployment: {accelerator: {interface: CUDA, class: h100, minVersion: {major: 8, minor: 6}}}");
    let preferred = &pod(&ours)["affinity"]["nodeAffinity"];
    assert_eq!(preferred.get("requiredDuringSchedulingIgnoredDuringExecution"), None);
    assert_eq!(
        preferred["preferredDuringSchedulingIgnoredDuringExecution"],
        json!([
            {"weight": 100, "preference": {"matchExpressions": [{"key": "nvidia.com/gpu.compute.major", "operator": "Gt", "values": ["8"]}]}},
            {"weight": 100, "preference": {"matchExpressions": [
                {"key": "nvidia.com/gpu.compute.major", "operator": "In", "values": ["8"]},
                {"key": "nvidia.com/gpu.compute.minor", "operator": "Gt", "values": ["5"]}]}},
        ])
    );
    assert!(ignored(&ours).is_empty());
}

#[test]
fn the_startup_budget_counts_in_periods_of_the_probe() {
    let budget = |options: &str| {
        let built = deployment(&vllm(&format!("deployment: {options}")));
        let probe = built
            .pointer("/spec/template/spec/containers/0/startupProbe")
            .unwrap()
            .clone();
        (
            probe["failureThreshold"].as_i64().unwrap(),
            built["spec"]["progressDeadlineSeconds"].as_i64(),
        )
    };
    // vLLM's probe: after 3 s, every second, 120 times.
    assert_eq!(budget("{}"), (120, None));
    assert_eq!(budget("{startupTimeoutSeconds: 3600}"), (3597, Some(4200)));
    assert_eq!(budget("{startupTimeoutSeconds: 1}"), (1, Some(601)));
    assert_eq!(
        budget("{startupTimeoutSeconds: 3600, startupProbe: {periodSeconds: 7, initialDelaySeconds: 0}}"),
        (515, Some(4200)),
        "rounded up"
    );
    let both = "{startupTimeoutSeconds: 3600, startupProbe: {failureThreshold: 5}}";
    assert_eq!(budget(both), (5, Some(4200)), "the probe's own number wins");
    assert_eq!(
        ignored(&vllm(&format!("deployment: {both}"))),
        ["spec.deployment.startupTimeoutSeconds"]
    );
}

#[test]
fn a_cache_takes_the_place_of_the_models_volume() {
    let volume = |spec: &str| pod(spec)["volumes"].clone();
    assert_eq!(
        volume(&vllm(
            "cache: {persistentVolumeClaim: {claimName: models, readOnly: true}}"
        )),
        json!([{"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": true}}])
    );
    let on_host = vllm("cache: {hostPath: {path: /var/lib/models}}");
    assert_eq!(
        volume(&on_host),
        json!([{"name": "models", "hostPath": {"path": "/var/lib/models", "type": "DirectoryOrCreate"}}])
    );
    assert_eq!(
        pod(&on_host)["containers"][0]["volumeMounts"],
        json!([{"name": "models", "mountPath": "/root/.cache/huggingface"}])
    );
    // Generic: only where the template has such a volume.
    let generic = |volumes: &str| {
        format!(
            "{{engine: {{name: generic}}, cache: {{hostPath: {{path: /m}}}}, \
             deployment: {{template: {{spec: {{containers: [{{name: a, image: b}}], volumes: {volumes}}}}}}}}}"
        )
    };
    assert_eq!(
        volume(&generic("[{name: models, emptyDir: {}}, {name: x, emptyDir: {}}]"))[0]["hostPath"]["path"],
        "/m"
    );
    assert_eq!(ignored(&generic("[]")), ["spec.cache"]);
    // A volume of the template's own at the engine's path.
    let own = vllm(
        "cache: {hostPath: {path: /m}}, deployment: {template: {spec: {volumes: [{name: mine, emptyDir: {}}], \
         containers: [{name: serving, volumeMounts: [{name: mine, mountPath: /root/.cache/huggingface}]}]}}}",
    );
    assert_eq!(ignored(&own), ["spec.cache"]);
}

#[test]
fn tolerations_of_the_installation_go_to_pods_with_gpus_alone() {
    let toleration = json!({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"});
    let installed = Defaults {
        gpu_tolerations: vec![serde_json::from_value(toleration.clone()).unwrap()],
        ..defaults()
    };
    let of = |spec: &str, defaults: &Defaults| {
        let model = read_with(&aideployment("m", spec), defaults, &Maps::default()).unwrap();
        let built = sent(&build(&model, &Observed::default()).deployment);
        built.pointer("/spec/template/spec/tolerations").cloned()
    };
    let gpu = vllm("deployment: {accelerator: {interface: CUDA}}");
    assert_eq!(of(&gpu, &installed), Some(json!([toleration])));
    assert_eq!(of(&gpu, &defaults()), None, "the original sets none");
    assert_eq!(of(&vllm("deployment: {}"), &installed), None);
    let has_it = vllm(&format!(
        "deployment: {{accelerator: {{interface: CUDA}}, template: {{spec: {{containers: [], tolerations: [{toleration}]}}}}}}"
    ));
    assert_eq!(of(&has_it, &installed), Some(json!([toleration])), "once");
}

#[test]
fn images_come_from_the_object_then_the_installation_then_the_engine() {
    let image = |options: &str, repository: Option<&str>, tag: Option<&str>| {
        let image = Image {
            repository: repository.map(str::to_owned),
            tag: tag.map(str::to_owned),
        };
        let installed = Defaults {
            images: [("vllm".to_owned(), image)].into(),
            ..defaults()
        };
        let spec = format!("{{engine: {{name: vllm, options: {options}}}, models: [{{uri: m}}]}}");
        let model = read_with(&aideployment("m", &spec), &installed, &Maps::default()).unwrap();
        model.serving.container.image.unwrap()
    };
    assert_eq!(image("{}", None, None), "vllm/vllm-openai:latest");
    assert_eq!(image("{}", Some("r:5000/v"), Some("v1")), "r:5000/v:v1");
    assert_eq!(image("{}", None, Some("v1")), "vllm/vllm-openai:v1");
    assert_eq!(image("{imageTag: v2}", Some("r/v"), Some("v1")), "r/v:v2");
}

#[test]
fn class_and_type_are_set_only_where_they_are_given() {
    let with = children(
        "m",
        &vllm("endpoint: [{domain: a}], ingress: {className: nginx, tls: true}, service: {type: LoadBalancer}"),
    );
    let ingress = sent(with.ingress.as_ref().unwrap());
    assert_eq!(ingress["spec"]["ingressClassName"], "nginx");
    assert_eq!(ingress["spec"]["tls"], json!([{"hosts": ["a"], "secretName": "m-tls"}]));
    assert_eq!(sent(&with.service)["spec"]["type"], "LoadBalancer");
    let without = children("m", &vllm("endpoint: [{domain: a}]"));
    assert_eq!(
        sent(without.ingress.as_ref().unwrap())["spec"].get("ingressClassName"),
        None
    );
    assert_eq!(sent(&without.service)["spec"].get("type"), None);
}

#[test]
fn a_gateway_publishes_instead_of_an_ingress_with_one_route_a_port() {
    let spec = "
        engine: {name: generic}
        endpoint: [{domain: a.example.com, port: 80}, {domain: b.example.com, port: 81}, {domain: c.example.com, port: 80}]
        ingress: {labels: {team: x}, annotations: {note: mine}, className: nginx}
        gateway: {parentRefs: [{name: public, namespace: infra, sectionName: https}]}
        deployment: {template: {spec: {containers: [{name: a, image: b}]}}}";
    let built = children("m", spec);
    assert!(built.ingress.is_none());
    let routes: Vec<Value> = built.http_routes.iter().map(sent).collect();
    let route = |name: &str, hosts: Value, port: u16| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": name, "namespace": "shop", "labels": {"team": "x"},
                "annotations": {"mlcontroller.premlabs.io/ai-deployment": "m", "note": "mine"}},
            "spec": {"parentRefs": [{"name": "public", "namespace": "infra", "sectionName": "https"}], "hostnames": hosts,
                "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": [{"name": "m", "port": port}]}]},
        })
    };
    assert_eq!(
        routes,
        [
            route("m", json!(["a.example.com", "c.example.com"]), 80),
            route("m-81", json!(["b.example.com"]), 81)
        ]
    );
    assert_eq!(ignored(spec), ["spec.ingress.className"]);
    let nothing = vllm("gateway: {parentRefs: [{name: public}]}");
    assert_eq!(ignored(&nothing), ["spec.gateway"]);
    assert!(children("m", &nothing).http_routes.is_empty());
}

#[test]
fn replicas_are_the_specs_unless_an_autoscaler_drives_what_is_there() {
    let replicas = |autoscaler: Option<&str>, exists: bool| {
        let object = json!({"metadata": {"name": "m", "namespace": "shop", "uid": "d"}, "spec": {"replicas": 5}});
        let observed = Observed {
            autoscaler: autoscaler.map(str::to_owned),
            deployment: exists.then(|| Child::new(serde_json::from_value(object).unwrap())),
            ..Observed::default()
        };
        let built = build(&model(&vllm("deployment: {replicas: 3}")), &observed);
        built.deployment.spec.unwrap().replicas
    };
    assert_eq!(replicas(None, true), Some(3));
    assert_eq!(replicas(Some("hpa"), true), None);
    assert_eq!(
        replicas(Some("hpa"), false),
        Some(3),
        "what is not there yet nobody scales"
    );
}

/// §8.1 row 11.
#[test]
fn an_endpoint_without_a_port_finds_one_and_every_port_is_reachable() {
    let spec = "
        engine: {name: generic}
        endpoint: [{domain: a}, {domain: b, port: 9000}]
        deployment: {template: {spec: {containers: [{name: a, image: b, ports: [{containerPort: 7000}]}]}}}";
    let built = children("m", spec);
    let ports = |v: &Value| {
        v["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["port"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        ports(&sent(&built.service)),
        [json!(9000)],
        "the first port given is that of those without"
    );
    let ollama = "{engine: {name: generic}, deployment: {template: {spec: {containers: [{name: a, image: ollama/ollama, \
        livenessProbe: {httpGet: {path: /, port: 11434}}}]}}}}";
    assert_eq!(
        ports(&sent(&children("m", ollama).service)),
        [json!(11434)],
        "where it is probed it listens"
    );
    let two = spec.replace("{domain: a}", "{domain: a, port: 8000}");
    assert_eq!(ports(&sent(&children("m", &two).service)), [json!(8000), json!(9000)]);
}

/// §8.1 row 14.
#[test]
fn the_service_selects_by_the_one_label_that_never_changes() {
    let built = children("m", &vllm("deployment: {labels: {version: v2}}"));
    assert_eq!(
        sent(&built.service)["spec"]["selector"],
        json!({"mlcontroller.premlabs.io/ai-deployment": "m"})
    );
}

/// §8.1 row 15.
#[test]
fn gpus_in_limits_alone_are_counted_and_get_the_runtime_class() {
    let pod = pod(&vllm("deployment: {resources: {limits: {nvidia.com/gpu: 4}}}"));
    assert_eq!(
        pod["containers"][0]["resources"]["requests"],
        json!({"nvidia.com/gpu": "4"})
    );
    assert_eq!(pod["runtimeClassName"], "nvidia");
}

/// §8.1 row 18.
#[test]
fn a_name_that_no_service_can_bear_is_refused_early() {
    for name in ["llama-3.1-8b", "1st", &"m".repeat(64)] {
        let problems = read(&aideployment(name, &vllm(""))).unwrap_err();
        assert!(problems.to_string().starts_with("metadata.name: "), "{problems}");
    }
}

/// §8.1 row 20.
#[test]
fn labels_of_the_user_cannot_break_the_selector() {
    let spec = vllm("deployment: {labels: {mlcontroller.premlabs.io/ai-deployment: other, a: b}}");
    let labels = &deployment(&spec)["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["mlcontroller.premlabs.io/ai-deployment"], "m");
    assert_eq!(labels["a"], "b");
}

/// §8.1 row 21: the shared label stays, and whoever wants to spread otherwise says so.
#[test]
fn the_spread_over_all_models_can_be_opted_out_of_and_added_to() {
    let spread = |options: &str| pod(&vllm(&format!("deployment: {options}")))["topologySpreadConstraints"].clone();
    assert_eq!(spread("{}").as_array().unwrap().len(), 1);
    assert_eq!(
        spread("{labels: {mlcontroller.premlabs.io/spread-topology: 'no'}}"),
        Value::Null
    );
    let own = "{template: {spec: {containers: [], topologySpreadConstraints: [{maxSkew: 2, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, \
        labelSelector: {matchLabels: {mlcontroller.premlabs.io/ai-deployment: m}}}]}}}";
    assert_eq!(spread(own).as_array().unwrap().len(), 2);
}

#[test]
fn claims_of_the_template_reach_the_container() {
    let spec = vllm(
        "deployment: {resources: {claims: [{name: gpu}]}, \
         template: {spec: {containers: [], resourceClaims: [{name: gpu, resourceClaimTemplateName: one}]}}}",
    );
    let pod = pod(&spec);
    assert_eq!(pod["containers"][0]["resources"]["claims"], json!([{"name": "gpu"}]));
    assert_eq!(pod["resourceClaims"][0]["name"], "gpu");
}
