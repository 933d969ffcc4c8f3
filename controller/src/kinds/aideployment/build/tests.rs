use serde_json::{Value, json};

use super::build;
use super::engines::ConfigFile;
use crate::kinds::aideployment::fetch::Observed;
use crate::kinds::aideployment::fixtures::{aideployment, children, defaults, maps, model_map, read, read_with, sent};
use crate::kinds::children::Kind;
use crate::kinds::children::apply::Intent;

/// The whole of an AIDeployment's children in one value, as sent.
fn all(name: &str, spec: &str) -> Value {
    let children = children(name, spec);
    json!({
        "deployment": sent(&children.deployment),
        "service": sent(&children.service),
        "ingress": children.ingress.as_ref().map(sent),
    })
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn serving(value: &Value) -> Value {
    let containers = value.pointer("/deployment/spec/template/spec/containers").unwrap();
    let found = containers.as_array().unwrap().iter().find(|c| c["name"] == "serving");
    found.unwrap().clone()
}

fn pod(value: &Value) -> Value {
    value.pointer("/deployment/spec/template/spec").unwrap().clone()
}

/// The original's example for vLLM, key by key. What is ours is the gate, and the Service's selector without labels that may change.
#[test]
fn the_golden_shape() {
    let built = all(
        "vllm-engine",
        "
        endpoint: [{domain: vllm.127.0.0.1.nip.io}]
        engine: {name: vllm}
        models: [{uri: mistralai/Mistral-7B-v0.1}]
        deployment:
          accelerator: {interface: CUDA, minVersion: {major: 7}}
          resources: {limits: {cpu: 1, memory: 16Gi}}
        ",
    );
    let want = yaml(
        r#"
        deployment:
          apiVersion: apps/v1
          kind: Deployment
          metadata: {name: vllm-engine, namespace: shop}
          spec:
            replicas: 1
            selector: {matchLabels: {mlcontroller.premlabs.io/ai-deployment: vllm-engine}}
            template:
              metadata:
                labels:
                  mlcontroller.premlabs.io/ai-deployment: vllm-engine
                  mlcontroller.premlabs.io/spread-topology: ai-model
              spec:
                schedulingGates: [{name: berth.dev/placement}]
                runtimeClassName: nvidia
                automountServiceAccountToken: false
                topologySpreadConstraints:
                - maxSkew: 1
                  topologyKey: kubernetes.io/hostname
                  whenUnsatisfiable: ScheduleAnyway
                  labelSelector: {matchLabels: {mlcontroller.premlabs.io/spread-topology: ai-model}}
                volumes: [{name: models, emptyDir: {}}]
                containers:
                - name: serving
                  image: "vllm/vllm-openai:latest"
                  imagePullPolicy: Always
                  args: [--model, mistralai/Mistral-7B-v0.1]
                  volumeMounts: [{name: models, mountPath: /root/.cache/huggingface}]
                  resources:
                    requests: {nvidia.com/gpu: "1"}
                    limits: {cpu: "1", memory: 16Gi, nvidia.com/gpu: "1"}
                  startupProbe: {httpGet: {path: /health, port: 8000}, initialDelaySeconds: 3, periodSeconds: 1, failureThreshold: 120}
                  readinessProbe: {httpGet: {path: /health, port: 8000}, failureThreshold: 3}
                  livenessProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 30, timeoutSeconds: 15, failureThreshold: 10}
        service:
          apiVersion: v1
          kind: Service
          metadata:
            name: vllm-engine
            namespace: shop
            annotations: {mlcontroller.premlabs.io/ai-deployment: vllm-engine}
          spec:
            ports: [{port: 8000, targetPort: 8000}]
            selector: {mlcontroller.premlabs.io/ai-deployment: vllm-engine}
        ingress:
          apiVersion: networking.k8s.io/v1
          kind: Ingress
          metadata:
            name: vllm-engine
            namespace: shop
            annotations: {mlcontroller.premlabs.io/ai-deployment: vllm-engine}
          spec:
            rules:
            - host: vllm.127.0.0.1.nip.io
              http:
                paths:
                - path: /
                  pathType: Prefix
                  backend: {service: {name: vllm-engine, port: {number: 8000}}}
        "#,
    );
    assert_eq!(built, want);
}

/// V1: without GPU and resources nothing of the kind is set.
#[test]
fn vllm_without_a_gpu() {
    insta::assert_yaml_snapshot!(all(
        "vllm",
        "{engine: {name: vllm}, models: [{uri: facebook/opt-125m}]}"
    ));
}

/// V2: single timings are replaced, a zero but for the initial delay is none.
#[test]
fn probe_overrides() {
    let built = all(
        "vllm",
        "
        engine: {name: vllm}
        models: [{uri: m}]
        deployment:
          resources: {requests: {memory: 70Mi}}
          startupProbe: {initialDelaySeconds: 66, periodSeconds: 33, timeoutSeconds: 12, failureThreshold: 13}
          readinessProbe: {successThreshold: 14, initialDelaySeconds: 0, periodSeconds: 0}
          livenessProbe: {periodSeconds: 21, terminationGracePeriodSeconds: 5}
        ",
    );
    let get = |probe: &str| {
        let mut probe = serving(&built)[probe].take();
        probe["httpGet"].take();
        probe
    };
    assert_eq!(
        get("startupProbe"),
        json!({"httpGet": null, "initialDelaySeconds": 66, "periodSeconds": 33, "timeoutSeconds": 12, "failureThreshold": 13})
    );
    assert_eq!(
        get("readinessProbe"),
        json!({"httpGet": null, "successThreshold": 14, "failureThreshold": 3, "initialDelaySeconds": 0})
    );
    assert_eq!(
        get("livenessProbe"),
        json!({"httpGet": null, "periodSeconds": 21, "timeoutSeconds": 15, "failureThreshold": 10, "terminationGracePeriodSeconds": 5})
    );
}

/// V3 and G2: the GPU count stands in requests and limits, other resources are left as given.
#[test]
fn gpus_in_resources() {
    let v3 = all(
        "vllm",
        "{engine: {name: vllm}, models: [{uri: m}], deployment: {accelerator: {interface: CUDA, minVersion: {major: 7}}, resources: {requests: {memory: 200Gi}}}}",
    );
    assert_eq!(
        serving(&v3)["resources"],
        json!({"requests": {"memory": "200Gi", "nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}})
    );
    assert_eq!(pod(&v3)["runtimeClassName"], "nvidia");
    let g2 = all(
        "g",
        "
        engine: {name: generic}
        endpoint: [{domain: foo, port: 8000}]
        deployment:
          accelerator: {interface: CUDA}
          resources: {requests: {memory: 200Gi, nvidia.com/gpu: 3}}
          template: {spec: {runtimeClassName: mine, containers: [{name: bun, image: 'oven/bun:latest'}]}}
        ",
    );
    assert_eq!(
        serving(&g2)["resources"],
        json!({"requests": {"memory": "200Gi", "nvidia.com/gpu": "3"}, "limits": {"nvidia.com/gpu": "3"}})
    );
    assert_eq!(pod(&g2)["runtimeClassName"], "mine", "a template's own is kept");
}

/// V4, and what the original refuses or breaks: names with `_` and `-`, empty options.
#[test]
fn vllm_arguments() {
    let args = |options: &str, model: &str| {
        let spec =
            format!("{{engine: {{name: vllm, options: {options}}}, models: [{{uri: m, {model}}}], args: [--x]}}");
        serving(&all("vllm", &spec))["args"].clone()
    };
    assert_eq!(
        args(
            "{dtype: float16, quantization: awq}",
            "quantization: awq, dataType: float16"
        ),
        json!(["--model", "m", "--dtype", "float16", "--quantization", "awq", "--x"])
    );
    assert_eq!(
        args("{quantization: awq_marlin}", "quantization: gptq, dataType: bfloat16"),
        json!([
            "--model",
            "m",
            "--dtype",
            "bfloat16",
            "--quantization",
            "awq_marlin",
            "--x"
        ]),
        "options win over the model"
    );
    assert_eq!(
        args("{dtype: '', quantization: compressed-tensors}", "dataType: ''"),
        json!(["--model", "m", "--quantization", "compressed-tensors", "--x"])
    );
}

#[test]
fn images() {
    let image = |options: &str| {
        let spec = format!("{{engine: {{name: vllm, options: {options}}}, models: [{{uri: m}}]}}");
        serving(&all("vllm", &spec))["image"].clone()
    };
    assert_eq!(image("{}"), "vllm/vllm-openai:latest");
    assert_eq!(image("{imageTag: v0.11.0}"), "vllm/vllm-openai:v0.11.0");
    assert_eq!(
        image("{imageRepository: r.example/v, imageTag: ''}"),
        "r.example/v:latest"
    );
}

/// The original ignores a template under vllm; here it is what the pod is built on.
#[test]
fn a_template_under_vllm_is_honoured() {
    let built = all(
        "vllm",
        "
        engine: {name: vllm}
        models: [{uri: m}]
        env: [{name: A, value: '1'}, {name: B, value: '2'}, {name: A, value: '3'}]
        deployment:
          template:
            metadata: {labels: {team: x}, annotations: {note: text}}
            spec:
              imagePullSecrets: [{name: secret}]
              containers:
              - {name: proxy, image: proxy}
              - name: serving
                image: 'mine:1'
                args: [--own]
                volumeMounts: [{name: cache, mountPath: /root/.cache/huggingface}]
              volumes: [{name: cache, persistentVolumeClaim: {claimName: c}}]
        ",
    );
    insta::assert_yaml_snapshot!(built["deployment"]["spec"]["template"]);
}

/// G1, and more than one port.
#[test]
fn generic_with_ports() {
    let built = all(
        "g",
        "
        engine: {name: generic}
        endpoint: [{domain: a.example.com, port: 8081}, {domain: b.example.com, port: 9000}, {domain: c.example.com}]
        service: {labels: {a: b}, annotations: {c: d}}
        ingress: {tls: true, labels: {e: f}, annotations: {mlcontroller.premlabs.io/ai-deployment: mine}}
        deployment:
          replicas: 3
          labels: {mlcontroller.premlabs.io/ai-deployment: other, mlcontroller.premlabs.io/spread-topology: none}
          nodeSelector: {pool: a}
          template:
            spec:
              nodeSelector: {pool: b, disk: ssd}
              containers: [{name: bun, image: 'oven/bun:latest', ports: [{containerPort: 9000, name: admin}]}, {name: side, image: s}]
        ",
    );
    insta::assert_yaml_snapshot!(built);
}

#[test]
fn generic_ports_without_endpoints() {
    let port = |container: &str| {
        let spec =
            format!("{{engine: {{name: generic}}, deployment: {{template: {{spec: {{containers: [{container}]}}}}}}}}");
        all("g", &spec)["service"]["spec"]["ports"].clone()
    };
    let on = |port: u16| json!([{"port": port, "targetPort": port}]);
    assert_eq!(port("{name: a, image: b}"), on(8000));
    assert_eq!(port("{name: a, image: b, ports: [{containerPort: 5000}]}"), on(5000));
    assert_eq!(
        port("{name: ollama, image: ollama/ollama, livenessProbe: {httpGet: {path: /, port: 11434}}}"),
        on(11434)
    );
    assert_eq!(
        port("{name: a, image: b, ports: [{containerPort: 7, name: web}], livenessProbe: {tcpSocket: {port: web}}}"),
        on(7)
    );
}

#[test]
fn kube_scheduler_gets_labels_instead_of_a_gate() {
    let with = |accelerator: &str, affinity: &str| {
        let spec = format!(
            "{{engine: {{name: vllm}}, models: [{{uri: m}}], deployment: {{accelerator: {{interface: CUDA, {accelerator}}}, placement: {{policy: Scheduler}}, \
             template: {{spec: {{containers: [], affinity: {affinity}}}}}}}}}"
        );
        let pod = pod(&all("v", &spec));
        assert!(pod.get("schedulingGates").is_none());
        json!({"nodeSelector": pod.get("nodeSelector"), "affinity": pod.get("affinity")})
    };
    assert_eq!(
        with("class: h100", "{}")["nodeSelector"],
        json!({"berth.dev/gpu-class": "h100"})
    );
    insta::assert_yaml_snapshot!(with(
        "classes: [h100, a100], minVersion: {major: 8, minor: 6}",
        "{nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}]}, {matchFields: [{key: metadata.name, operator: In, values: [node-1]}]}]}}}",
    ));
    assert_eq!(
        with("minVersion: {major: 9}", "{}")["affinity"],
        yaml(
            "{nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: nvidia.com/gpu.compute.major, operator: Gt, values: ['8']}]}]}}}"
        )
    );
}

/// What every child carries besides, and where it does not.
#[test]
fn marks_of_a_child() {
    let spec = "{engine: {name: vllm}, models: [{uri: m}], service: {labels: {app.kubernetes.io/managed-by: me}}}";
    let owner = read(&aideployment("v", spec)).unwrap().owner;
    let children = children("v", spec);
    let deployment = Intent::new(Kind::Deployment, &owner, sent(&children.deployment)).body;
    assert_eq!(
        deployment["metadata"]["ownerReferences"],
        json!([{"apiVersion": "premlabs.io/v1alpha1", "kind": "AIDeployment", "name": "v", "uid": "uid-of-it",
            "controller": true, "blockOwnerDeletion": true}])
    );
    assert_eq!(
        deployment["metadata"]["labels"],
        json!({"app.kubernetes.io/managed-by": "berth"})
    );
    let inside = deployment["spec"].to_string();
    assert!(
        !inside.contains("managed-by") && !inside.contains("berth.dev/applied"),
        "{inside}"
    );
    let service = Intent::new(Kind::Service, &owner, sent(&children.service)).body;
    assert_eq!(
        service["metadata"]["labels"]["app.kubernetes.io/managed-by"], "berth",
        "ours wins"
    );
}

/// What a map's edit comes to: another model makes other pods; whatever else changes in the map changes no child.
#[test]
fn only_an_edit_that_changes_the_resolved_model_changes_a_child() {
    let object = aideployment(
        "v",
        "{engine: {name: vllm}, models: [{modelMapRef: {name: phi, variant: a}, quantization: awq}]}",
    );
    let built = |spec: Value, annotations: &[(&str, &str)]| {
        let mut map = model_map("shop", "phi", spec);
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        map.metadata.annotations = Some(annotations.collect());
        let model = read_with(&object, &defaults(), &maps([map])).unwrap_or_else(|p| panic!("{p}"));
        build(&model, &Observed::default())
    };
    let before = built(json!({"vllm": [{"variant": "a", "uri": "u"}]}), &[]);
    let same = [
        (
            json!({"vllm": [{"variant": "b", "uri": "w"}, {"variant": "a", "uri": "u"}]}),
            &[][..],
        ),
        (
            json!({"vllm": [{"variant": "a", "uri": "u", "quantization": "gptq"}]}),
            &[],
        ),
        (
            json!({"vllm": [{"variant": "a", "uri": " u"}], "localai": [{"variant": "a", "uri": "w"}]}),
            &[],
        ),
        (
            json!({"vllm": [{"variant": "a", "uri": "u"}]}),
            &[("berth.dev/allow-from", "*"), ("example.com/note", "x")],
        ),
        (
            json!({"vllm": [{"variant": "a", "uri": "u", "engineConfigFile": "not read by vllm"}]}),
            &[],
        ),
    ];
    for (spec, annotations) in same {
        assert_eq!(built(spec.clone(), annotations), before, "{spec}");
    }
    let after = built(json!({"vllm": [{"variant": "a", "uri": "w"}]}), &[]);
    assert_ne!(after.deployment, before.deployment);
    assert_eq!(after.service, before.service);
}

/// The files of an engine are in a ConfigMap of the AIDeployment's own namespace, and in the hash that makes new pods.
#[test]
fn another_file_makes_other_pods_and_the_same_file_the_same() {
    let mut model = read(&aideployment("v", "{engine: {name: vllm}, models: [{uri: u}]}")).unwrap();
    let mut with = |files: &[(&str, &str)]| {
        let file = |(key, text): &(&str, &str)| ConfigFile {
            key: (*key).into(),
            text: (*text).into(),
        };
        model.serving.config_files = files.iter().map(file).collect();
        let built = build(&model, &Observed::default());
        let annotations = sent(&built.deployment)["spec"]["template"]["metadata"]["annotations"].clone();
        (
            built.config_map.as_ref().map(sent),
            annotations["berth.dev/config-hash"].clone(),
        )
    };
    let (config_map, hash) = with(&[]);
    assert_eq!(
        (config_map, hash),
        (None, Value::Null),
        "the template is the original's"
    );
    let (config_map, first) = with(&[("localai-a-engineConfigFile", "x: 1\n")]);
    assert_eq!(
        config_map.unwrap(),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "v-engine-config", "namespace": "shop"},
            "data": {"localai-a-engineConfigFile": "x: 1\n"}})
    );
    assert_eq!(with(&[("localai-a-engineConfigFile", "x: 1\n")]).1, first);
    for other in [
        ("localai-a-engineConfigFile", "x: 2\n"),
        ("localai-b-engineConfigFile", "x: 1\n"),
    ] {
        assert_ne!(with(&[other]).1, first, "{other:?}");
    }
}

/// The children of an AIDeployment that refers to maps, as sent.
fn with_maps(name: &str, spec: &str, given: &[(&str, &str)]) -> (Value, Option<Value>) {
    let all = maps(given.iter().map(|(name, spec)| model_map("shop", name, yaml(spec))));
    let object = aideployment(name, spec);
    let model = read_with(&object, &defaults(), &all).unwrap_or_else(|problems| panic!("{problems}"));
    let built = build(&model, &Observed::default());
    (
        json!({"deployment": sent(&built.deployment)}),
        built.config_map.as_ref().map(sent),
    )
}

fn one_model(engine: &str, map: &str, variant: &str) -> String {
    format!("{{engine: {{name: {engine}}}, models: [{{modelMapRef: {{name: {map}, variant: {variant}}}}}]}}")
}

/// L4, V5 and M4: each engine has its own list.
#[test]
fn a_reference_is_looked_up_in_the_list_of_the_engine() {
    let map = "{localai: [{variant: a, uri: phi-2}], vllm: [{variant: a, uri: microsoft/phi-2}], deepspeed-mii: [{variant: a, uri: microsoft/phi-3}], \
               tensor_rt: [{variant: a, uri: 'https://example.com/model.plan'}]}";
    let built = |engine: &str| with_maps("m", &one_model(engine, "phi", "a"), &[("phi", map)]).0;
    let args = |engine: &str| serving(&built(engine))["args"].clone();
    assert_eq!(args("localai"), json!(["phi-2"]));
    assert_eq!(args("vllm"), json!(["--model", "microsoft/phi-2"]));
    assert_eq!(args("deepspeed-mii"), json!(["--uri", "microsoft/phi-3"]));
    let triton = pod(&built("triton"));
    assert_eq!(triton["initContainers"][0]["name"], "init-phi");
    assert_eq!(
        triton["initContainers"][0]["env"],
        json!([{"name": "MODEL_NAME", "value": "phi"}, {"name": "MODEL_PATH", "value": "https://example.com/model.plan"}])
    );
}

/// L6, and the original's examples with a configuration file in a map.
#[test]
fn a_configuration_file_of_a_map_is_mounted_from_the_own_config_map() {
    let map = "{localai: [{variant: base, uri: 'huggingface://not/read', engineConfigFile: 'name: bert'}]}";
    let (built, config_map) = with_maps(
        "simple",
        &one_model("localai", "distilroberta", "base"),
        &[("distilroberta", map)],
    );
    let pod = pod(&built);
    let volumes: Vec<_> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].clone())
        .collect();
    assert_eq!(volumes, ["models", "cache", "configs"]);
    assert_eq!(
        pod["volumes"][2]["projected"]["sources"],
        json!([{"configMap": {"name": "simple-engine-config",
            "items": [{"key": "localai-base-engineConfigFile", "path": "engine/distilroberta-base.yaml"}]}}])
    );
    assert_eq!(
        config_map.unwrap()["data"],
        json!({"localai-base-engineConfigFile": "name: bert"})
    );
    assert_eq!(pod["initContainers"][0]["name"], "init-configs-simple");
    assert!(
        serving(&built).get("args").is_none(),
        "the uri is not read: {}",
        serving(&built)
    );
}

/// What the AIDeployment sets beside a reference is what is mounted, and the map's ConfigMap is not needed for it.
#[test]
fn a_configuration_file_beside_a_reference_wins() {
    let spec =
        "{engine: {name: localai}, models: [{modelMapRef: {name: m, variant: v}, engineConfigFile: 'name: mine'}]}";
    for map in [
        "{localai: [{variant: v, uri: u, engineConfigFile: 'name: of the map'}]}",
        "{localai: [{variant: v, uri: u}]}",
    ] {
        let (_, config_map) = with_maps("a", spec, &[("m", map)]);
        assert_eq!(
            config_map.unwrap()["data"],
            json!({"localai-v-engineConfigFile": "name: mine"})
        );
    }
}

/// The original's example of a reference and an inline model in one AIDeployment.
#[test]
fn a_download_is_named_after_the_map_and_stands_beside_an_inline_model() {
    let spec = "{engine: {name: localai}, endpoint: [{domain: a.example.com}], models: [{modelMapRef: {name: tinyllama-1.1b-chat-v0.1, variant: q4-k-m}}, {uri: phi-2}]}";
    let map = "{localai: [{variant: q4-k-m, uri: 'https://example.com/tinyllama.gguf'}], vllm: [{variant: awq, uri: x, quantization: awq, dataType: float16}]}";
    let (built, config_map) = with_maps("localai-tinyllama", spec, &[("tinyllama-1.1b-chat-v0.1", map)]);
    let pod = pod(&built);
    assert_eq!(pod["initContainers"][0]["name"], "init-models-localai-tinyllama");
    assert_eq!(
        pod["initContainers"][0]["env"],
        json!([{"name": "MODEL_NAME", "value": "tinyllama-1.1b-chat-v0.1"}, {"name": "MODEL_PATH", "value": "https://example.com/tinyllama.gguf"}])
    );
    assert_eq!(serving(&built)["args"], json!(["phi-2"]));
    assert_eq!(config_map, None);
}
