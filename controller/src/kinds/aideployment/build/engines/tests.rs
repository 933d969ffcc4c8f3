//! What each engine makes of a spec: the original's manifests in, objects out.

use berth_crds::premlabs::aideployment::AIDeploymentSpec;
use serde_json::{Value, json};

use super::download::Script;
use super::{Asked, ENGINES, Serving};
use crate::kinds::aideployment::fixtures::{aideployment, children, defaults, read, sent};
use crate::kinds::aideployment::models::ResolvedModel;
use crate::kinds::status::problems::Findings;

/// Children in one value, as sent.
fn all(name: &str, spec: &str) -> Value {
    let children = children(name, spec);
    json!({
        "configMap": children.config_map.as_ref().map(sent),
        "deployment": sent(&children.deployment),
        "service": sent(&children.service),
        "ingress": children.ingress.as_ref().map(sent),
    })
}

fn pod(name: &str, spec: &str) -> Value {
    sent(&children(name, spec).deployment)["spec"]["template"]["spec"].clone()
}

/// Scripts are tested by running them: in snapshots their names are enough.
fn named(mut value: Value) -> Value {
    let text = |script: Script| (script.text(), format!("{script:?}"));
    let scripts: Vec<_> = Script::ALL.map(text).into();
    fn replace(value: &mut Value, scripts: &[(String, String)]) {
        match value {
            Value::String(s) => {
                if let Some((_, name)) = scripts.iter().find(|(text, _)| text == s) {
                    s.clone_from(name);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|v| replace(v, scripts)),
            Value::Object(map) => map.values_mut().for_each(|v| replace(v, scripts)),
            _ => {}
        }
    }
    replace(&mut value, &scripts);
    value
}

fn serving(name: &str, spec: &str) -> Value {
    let pod = pod(name, spec);
    let containers = pod["containers"].as_array().unwrap();
    containers.iter().find(|c| c["name"] == "serving").unwrap().clone()
}

/// A model as a map's variant resolves to.
fn of_map(index: usize, map: &str, variant: &str, uri: &str, config: &str) -> ResolvedModel {
    let given = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    ResolvedModel {
        index,
        name: map.into(),
        variant: variant.into(),
        hostname: format!("{map}-{variant}").replace('.', "-"),
        uri: given(uri),
        engine_config_file: given(config),
        ..ResolvedModel::default()
    }
}

/// What an engine reads with models that are resolved already.
fn with_models(engine: &str, name: &str, spec: &str, models: &[ResolvedModel]) -> (Serving, Findings) {
    let spec: AIDeploymentSpec = serde_saphyr::from_str(spec).unwrap();
    let engine = ENGINES.iter().find(|e| e.name == engine).unwrap();
    let mut findings = Findings::default();
    let asked = Asked {
        name,
        spec: &spec,
        models,
        gpus: 0,
        defaults: &defaults(),
    };
    let serving = (engine.read)(&asked, &mut findings).unwrap();
    (serving, findings)
}

fn init_containers(serving: &Serving) -> Vec<(String, Vec<(String, String)>)> {
    let env = |c: &k8s_openapi::api::core::v1::Container| {
        let env = c.env.clone().unwrap_or_default();
        env.into_iter().map(|v| (v.name, v.value.unwrap_or_default())).collect()
    };
    serving
        .init_containers
        .iter()
        .map(|c| (c.name.clone(), env(c)))
        .collect()
}

fn download(container: &str, name: &str, url: &str) -> (String, Vec<(String, String)>) {
    let env = [("MODEL_NAME", name), ("MODEL_PATH", url)];
    (container.into(), env.map(|(k, v)| (k.into(), v.into())).into())
}

/// The original's `test.yaml`, nulls as the API server leaves them out.
#[test]
fn localai_by_name() {
    insta::assert_yaml_snapshot!(named(all(
        "simple",
        "
        endpoint: [{domain: foo.127.0.0.1.nip.io, port: 8080}]
        engine: {name: localai}
        env: [{name: DEBUG, value: 'true'}]
        models: [{uri: tinyllama-chat}]
        deployment: {resources: {requests: {cpu: 8, memory: 3Gi}}}
        "
    )));
}

/// `localai-config.yaml`, with the configuration inline.
#[test]
fn localai_with_an_inline_configuration_file() {
    insta::assert_yaml_snapshot!(named(all(
        "simple",
        "
        endpoint: [{domain: foo.127.0.0.1.nip.io, port: 8080}]
        engine: {name: localai}
        models: [{engineConfigFile: 'name: bert'}]
        "
    )));
}

/// L1: a model from the web.
#[test]
fn localai_with_a_download() {
    insta::assert_yaml_snapshot!(named(pod(
        "foo",
        "
        engine: {name: localai, options: {imageRepository: localai/localai, imageTag: master-ffmpeg-core}}
        models: [{uri: 'https://example.com/tinyllama.Q4_K_M.gguf'}]
        "
    )));
}

/// `localai-hermes.yaml`, `big-agi.yaml`, `llm-cli.yaml`: limits alone stay limits.
#[test]
fn localai_on_a_gpu() {
    let spec = "
        endpoint: [{domain: hermes.127.0.0.1.nip.io}]
        engine: {name: localai, options: {imageTag: v2.12.4-cublas-cuda12-ffmpeg}}
        env: [{name: DEBUG, value: 'true'}]
        models: [{uri: hermes-2-pro-mistral}]
        deployment:
          accelerator: {interface: CUDA, minVersion: {major: 7}}
          resources: {limits: {cpu: 64, memory: 128Gi}}
        ";
    let serving = serving("hermes", spec);
    assert_eq!(
        serving["image"],
        "quay.io/go-skynet/local-ai:v2.12.4-cublas-cuda12-ffmpeg"
    );
    assert_eq!(serving["args"], json!(["hermes-2-pro-mistral"]));
    assert_eq!(
        serving["resources"],
        json!({"requests": {"nvidia.com/gpu": "1"}, "limits": {"cpu": "64", "memory": "128Gi", "nvidia.com/gpu": "1"}})
    );
    let pod = pod("hermes", spec);
    assert_eq!(pod["runtimeClassName"], "nvidia");
    let names: Vec<_> = pod["volumes"].as_array().unwrap().iter().map(|v| &v["name"]).collect();
    assert_eq!(names, ["models", "cache"]);
}

/// `elia-tui.yaml` and `elia-tui-cpu.yaml`: the accelerator is all the difference.
#[test]
fn localai_with_and_without_a_gpu() {
    let spec = |accelerator: &str| {
        format!(
            "{{endpoint: [{{domain: phi.127.0.0.1.nip.io}}], engine: {{name: localai, options: {{imageTag: v2.15.0}}}}, models: [{{uri: phi-2-chat}}], \
             deployment: {{resources: {{requests: {{cpu: 4, memory: 8Gi}}, limits: {{cpu: 8, memory: 16Gi}}}}, {accelerator}}}}}"
        )
    };
    let (gpu, cpu) = (
        pod(
            "phi-2-chat",
            &spec("accelerator: {interface: CUDA, minVersion: {major: 7}}"),
        ),
        pod("phi-2-chat", &spec("replicas: 1")),
    );
    assert_eq!(gpu["containers"][0]["args"], json!(["phi-2-chat"]));
    assert_eq!(gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], "1");
    assert!(!cpu.to_string().contains("nvidia"), "{cpu}");
    assert!(cpu.get("schedulingGates").is_none());
}

/// `llama3-70b-gguf.yaml`.
#[test]
fn localai_with_a_longer_start() {
    let serving = serving(
        "llama-3-70b",
        "
        engine: {name: localai}
        models: [{uri: 'huggingface://a/b/c.gguf'}]
        deployment: {startupProbe: {initialDelaySeconds: 300, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 300}}
        ",
    );
    assert_eq!(
        serving["startupProbe"],
        json!({"httpGet": {"path": "/readyz", "port": 8080}, "initialDelaySeconds": 300, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 300})
    );
    assert_eq!(serving["args"], json!(["huggingface://a/b/c.gguf"]));
}

/// `models.yaml`: a map's model from the web and an inline name.
#[test]
fn localai_with_a_map_and_a_name() {
    let url = "https://example.com/tinyllama-1.1b-chat-v0.1.Q4_K_M.gguf";
    let models = [
        of_map(0, "tinyllama-1.1b-chat-v0.1", "q4-k-m", url, ""),
        of_map(1, "localai-tinyllama", "inline", "phi-2", ""),
    ];
    let (serving, findings) = with_models("localai", "localai-tinyllama", "{}", &models);
    assert_eq!(findings, Findings::default());
    assert_eq!(
        init_containers(&serving),
        [download(
            "init-models-localai-tinyllama",
            "tinyllama-1.1b-chat-v0.1",
            url
        )]
    );
    assert_eq!(serving.container.args.unwrap(), ["phi-2"]);
    assert_eq!(serving.config_files, []);
}

/// `llama3-8b-gguf.yaml`, and L6: a map's configuration file stands for its uri.
#[test]
fn localai_with_a_map_that_has_a_configuration_file() {
    let models = [of_map(
        0,
        "llama-3-8b-gguf",
        "base",
        "huggingface://a/b/c.gguf",
        "name: llama",
    )];
    let (serving, findings) = with_models("localai", "llama", "{}", &models);
    assert_eq!(findings, Findings::default());
    let volumes: Vec<_> = serving.volumes.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(volumes, ["models", "cache", "configs"]);
    assert_eq!(
        sent(&serving.volumes[2].projected),
        json!({"sources": [{"configMap": {"name": "llama-engine-config",
            "items": [{"key": "localai-base-engineConfigFile", "path": "engine/llama-3-8b-gguf-base.yaml"}]}}]})
    );
    assert_eq!(serving.container.args.clone().unwrap(), Vec::<String>::new());
    assert_eq!(
        init_containers(&serving),
        [("init-configs-llama".to_owned(), Vec::new())]
    );
}

/// Two maps may name their variants alike: both files are there.
#[test]
fn configuration_files_of_the_same_variant_name_do_not_hide_each_other() {
    let models = [
        of_map(0, "a", "base", "", "name: a"),
        of_map(1, "b", "base", "", "name: b"),
        of_map(2, "a", "base", "", "name: a"),
        of_map(3, "a", "base", "", "name: override"),
    ];
    let (serving, _) = with_models("localai", "m", "{}", &models);
    let files: Vec<_> = serving.config_files.iter().map(|f| (&*f.key, &*f.text)).collect();
    assert_eq!(
        files,
        [
            ("localai-base-engineConfigFile", "name: a"),
            ("localai-base-engineConfigFile-2", "name: b"),
            ("localai-base-engineConfigFile-3", "name: override"),
        ]
    );
    let volume = sent(&serving.volumes[2]);
    let items = volume["projected"]["sources"][0]["configMap"]["items"]
        .as_array()
        .unwrap();
    let paths: Vec<_> = items.iter().map(|i| &i["path"]).collect();
    assert_eq!(
        paths,
        ["engine/a-base.yaml", "engine/b-base.yaml", "engine/a-base-2.yaml"]
    );
}

#[test]
fn a_uri_beside_a_configuration_file_is_reported() {
    let model = read(&aideployment(
        "m",
        "{engine: {name: localai}, models: [{uri: phi-2, engineConfigFile: 'name: x'}]}",
    ));
    let ignored = model.unwrap().ignored;
    assert_eq!(
        ignored,
        ["spec.models[0].uri: the model's configuration file says what to serve"]
    );
}

#[test]
fn configuration_files_that_cannot_be_mounted_are_refused() {
    let lines = |spec: &str| read(&aideployment("m", spec)).unwrap_err().to_string();
    let big = format!(
        "{{engine: {{name: localai}}, models: [{{engineConfigFile: '{}'}}]}}",
        "x".repeat(1_000_001)
    );
    assert!(lines(&big).starts_with("spec.models: the configuration files are 10000"));
    let taken = "{engine: {name: localai}, models: [{engineConfigFile: x}], deployment: {template: {spec: {containers: [], volumes: [{name: configs}]}}}}";
    assert!(lines(taken).starts_with("spec.deployment.template.spec.volumes[configs]: "));
}

/// LocalAI's own variable comes last, and no other value can lead it away from its models.
#[test]
fn localai_finds_its_models_whatever_the_environment_says() {
    let spec = "{engine: {name: localai}, env: [{name: MODELS_PATH, value: /x}, {name: DEBUG, value: 'true'}]}";
    assert_eq!(
        serving("m", spec)["env"],
        json!([{"name": "DEBUG", "value": "true"}, {"name": "MODELS_PATH", "value": "/models"}])
    );
    let ignored = read(&aideployment("m", spec)).unwrap().ignored;
    assert_eq!(ignored, ["spec.env[MODELS_PATH]: the models are in /models"]);
}

/// Two downloads of one name, in the original one container name twice and one file for both.
#[test]
fn two_downloads_have_containers_and_files_of_their_own() {
    for (engine, first, name) in [("localai", "init-models-m", "m"), ("triton", "init-m", "m")] {
        let spec = format!("{{engine: {{name: {engine}}}, models: [{{uri: 'http://x/a'}}, {{uri: 'http://x/b'}}]}}");
        let model = read(&aideployment("m", &spec)).unwrap();
        assert_eq!(
            init_containers(&model.serving),
            [
                download(first, name, "http://x/a"),
                download(&format!("{first}-2"), &format!("{name}-2"), "http://x/b")
            ]
        );
    }
}

/// A map's name may have dots and 253 characters, a container's neither.
#[test]
fn names_that_no_container_can_have_are_made_to_fit() {
    let long = "a".repeat(253);
    let models = [
        of_map(0, "tinyllama-1.1b-chat-v0.1", "q4", "http://x/a", ""),
        of_map(1, &long, "q4", "http://x/b", ""),
    ];
    let (serving, findings) = with_models("triton", "m", "{}", &models);
    assert_eq!(findings, Findings::default());
    let init = init_containers(&serving);
    assert_eq!(
        init[0],
        download(
            "init-tinyllama-1-1b-chat-v0-1",
            "tinyllama-1.1b-chat-v0.1",
            "http://x/a"
        )
    );
    assert_eq!(init[1].0.len(), 63);
    assert!(init[1].1[0].1.len() <= 150);
    let name = "a".repeat(63);
    let spec = "{engine: {name: localai}, models: [{uri: 'http://x/a'}, {engineConfigFile: x}]}";
    let names: Vec<_> = init_containers(&read(&aideployment(&name, spec)).unwrap().serving)
        .into_iter()
        .map(|c| c.0)
        .collect();
    assert!(names.iter().all(|n| n.len() == 63) && names[0] != names[1], "{names:?}");
}

/// A template is a base for every engine that has an image of its own; its own init containers run first.
#[test]
fn a_template_is_the_base_of_every_engine() {
    for (engine, models) in [
        ("localai", "[{uri: 'http://x/m'}]"),
        ("vllm", "[{uri: m}]"),
        ("deepspeed-mii", "[{uri: m}]"),
        ("triton", "[{uri: 'http://x/m.onnx'}]"),
    ] {
        let spec = format!(
            "
            engine: {{name: {engine}}}
            models: {models}
            args: [--last]
            env: [{{name: HF_TOKEN, value: x}}]
            deployment:
              template:
                spec:
                  imagePullSecrets: [{{name: mine}}]
                  initContainers: [{{name: init-models-m, image: i}}, {{name: init-m, image: i}}]
                  volumes: [{{name: store, persistentVolumeClaim: {{claimName: c}}}}]
                  containers:
                  - {{name: side, image: side}}
                  - name: serving
                    image: 'mine:1'
                    imagePullPolicy: IfNotPresent
                    args: [--own]
                    securityContext: {{runAsUser: 1000}}
                    volumeMounts: [{{name: store, mountPath: /models/, subPath: a, readOnly: true}}]
                    readinessProbe: {{httpGet: {{path: /mine, port: 1}}}}
            "
        );
        let pod = pod("m", &spec);
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "mine"}]), "{engine}");
        let serving = &pod["containers"][1];
        assert_eq!(
            (&serving["image"], &serving["imagePullPolicy"]),
            (&json!("mine:1"), &json!("IfNotPresent")),
            "{engine}"
        );
        let args = serving["args"].as_array().unwrap();
        assert_eq!(args[args.len() - 2..], [json!("--own"), json!("--last")], "{engine}");
        assert_eq!(serving["readinessProbe"]["httpGet"]["path"], "/mine", "{engine}");
        assert!(serving["livenessProbe"].is_object(), "{engine}");
        assert_eq!(serving["env"][0], json!({"name": "HF_TOKEN", "value": "x"}), "{engine}");
        let init: Vec<_> = pod["initContainers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(init[..2], ["init-models-m", "init-m"], "{engine}");
        if let Some(own) = init.get(2) {
            assert!(["init-models-m-2", "init-m-2"].contains(own), "{engine}: {own}");
            let container = &pod["initContainers"][2];
            assert_eq!(container["securityContext"], json!({"runAsUser": 1000}), "{engine}");
            assert_eq!(
                container["volumeMounts"],
                json!([{"name": "store", "mountPath": "/models/", "subPath": "a"}]),
                "{engine}: it writes where the engine reads"
            );
        }
        let names: Vec<_> = pod["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v["name"].as_str().unwrap())
            .collect();
        let want: &[&str] = match engine {
            "localai" => &["store", "cache"],
            "vllm" => &["store", "models"],
            _ => &["store"],
        };
        assert_eq!(names, want, "{engine}");
    }
}

/// `deepspeed-mii.yaml`: no endpoint, no Ingress.
#[test]
fn deepspeed_mii() {
    insta::assert_yaml_snapshot!(named(all(
        "deepspeed-mii",
        "
        engine: {name: deepspeed-mii}
        models: [{uri: microsoft/phi-2}]
        deployment: {accelerator: {interface: CUDA, minVersion: {major: 8}}}
        "
    )));
}

/// M4.
#[test]
fn deepspeed_mii_with_a_map() {
    let (serving, _) = with_models(
        "deepspeed-mii",
        "m",
        "{models: [{modelMapRef: {name: phi, variant: original}}]}",
        &[of_map(0, "phi", "original", "microsoft/phi-2", "")],
    );
    assert_eq!(serving.container.args.unwrap(), ["--uri", "microsoft/phi-2"]);
}

#[test]
fn triton() {
    insta::assert_yaml_snapshot!(named(all(
        "triton",
        "
        endpoint: [{domain: triton.127.0.0.1.nip.io}]
        engine: {name: triton}
        env: [{name: HF_TOKEN, value: x}]
        args: [--log-verbose=1]
        models: [{uri: 'https://example.com/resnet/model.onnx?download=1'}, {uri: 'https://example.com/repository.tar.gz'}]
        deployment: {accelerator: {interface: CUDA, minVersion: {major: 7}}}
        "
    )));
}

/// L3, S1: args are the models and no more, and none at all is fine.
#[test]
fn localai_args() {
    assert_eq!(
        serving("m", "{engine: {name: localai}, models: [{uri: phi-2}]}")["args"],
        json!(["phi-2"])
    );
    let spec = "{engine: {name: localai}, models: [{uri: a}, {uri: 'https://x/y'}, {uri: b}], args: [--debug]}";
    assert_eq!(serving("m", spec)["args"], json!(["a", "b", "--debug"]));
    assert!(serving("m", "{engine: {name: localai}}").get("args").is_none());
    assert!(pod("m", "{engine: {name: triton}}").get("initContainers").is_none());
}

/// Environment of the spec arrives with every engine: it may hold the token for the models.
#[test]
fn no_engine_drops_the_environment() {
    for (engine, model) in [
        ("localai", "m"),
        ("vllm", "m"),
        ("deepspeed-mii", "m"),
        ("triton", "http://x/m"),
    ] {
        let spec = format!(
            "{{engine: {{name: {engine}}}, models: [{{uri: '{model}'}}], env: [{{name: HF_TOKEN, value: x}}]}}"
        );
        assert_eq!(serving("m", &spec)["env"][0]["name"], "HF_TOKEN", "{engine}");
    }
}

/// Several GPUs are all used, unless somebody says how; one GPU gives what the original gives.
#[test]
fn vllm_uses_all_gpus_of_a_pod() {
    let with = |deployment: &str, more: &str| {
        let spec = format!("{{engine: {{name: vllm}}, models: [{{uri: m}}], deployment: {{{deployment}}}, {more}}}");
        let pod = pod("m", &spec);
        let serving = pod["containers"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["name"] == "serving")
            .unwrap()
            .clone();
        let args: Vec<String> = serde_json::from_value(serving["args"].clone()).unwrap();
        let memory = pod["volumes"].as_array().unwrap().iter().any(|v| v["name"] == "dshm");
        let mounts = serving["volumeMounts"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| m["mountPath"].as_str().unwrap().starts_with("/dev/shm"))
            .count();
        (args[2..].join(" "), memory, mounts)
    };
    let four = "accelerator: {interface: CUDA}, resources: {limits: {nvidia.com/gpu: 4}}";
    let tp = |n: u32, more: &str| format!("--tensor-parallel-size {n}{more}");
    let shared = |args: String| (args, true, 1);
    assert_eq!(with("replicas: 1", ""), (String::new(), false, 0));
    assert_eq!(with("accelerator: {interface: CUDA}", ""), (String::new(), false, 0));
    assert_eq!(with("accelerator: {interface: CUDA, count: 2}", ""), shared(tp(2, "")));
    assert_eq!(with(four, "args: [--x]"), shared(tp(4, " --x")));
    for given in [
        "--tensor-parallel-size=2",
        "--tensor_parallel_size",
        "-tp",
        "-pp=4",
        "--data-parallel-size",
        "--config",
    ] {
        assert_eq!(
            with(four, &format!("args: ['{given}']")),
            shared(given.into()),
            "{given}"
        );
    }
    let template =
        |container: &str| format!("{four}, template: {{spec: {{containers: [{{name: serving, {container}}}]}}}}");
    assert_eq!(with(&template("args: ['-tp', '2']"), ""), shared("-tp 2".into()));
    assert_eq!(
        with(&template("volumeMounts: [{name: own, mountPath: /dev/shm/}]"), ""),
        (tp(4, ""), false, 1)
    );
    assert_eq!(
        with(
            "template: {spec: {containers: [{name: serving, resources: {limits: {nvidia.com/gpu: 3}}}]}}",
            ""
        ),
        shared(tp(3, ""))
    );
    // Slices of a GPU cannot work together.
    let slices = serving(
        "m",
        "{engine: {name: vllm}, models: [{uri: m}], deployment: {accelerator: {interface: CUDA, count: 2, migProfile: 1g.10gb}}}",
    );
    assert_eq!(slices["args"], json!(["--model", "m"]));
}

#[test]
fn deepspeed_mii_has_shared_memory_for_several_gpus() {
    let pod = |count: u32| {
        pod(
            "m",
            &format!(
                "{{engine: {{name: deepspeed-mii}}, models: [{{uri: m}}], deployment: {{accelerator: {{interface: CUDA, count: {count}}}}}}}"
            ),
        )
    };
    assert!(pod(1).get("volumes").is_none());
    assert_eq!(
        pod(2)["volumes"],
        json!([{"name": "dshm", "emptyDir": {"medium": "Memory"}}])
    );
    assert_eq!(
        pod(2)["containers"][0]["volumeMounts"],
        json!([{"name": "dshm", "mountPath": "/dev/shm"}])
    );
}

/// `generic-ollama.yaml` with no endpoint: the Service has the port that the program listens on.
#[test]
fn generic_ollama_is_reachable() {
    let built = all(
        "ollama",
        "
        engine: {name: generic}
        deployment:
          accelerator: {interface: CUDA, minVersion: {major: 7}}
          template: {spec: {containers: [{name: ollama, image: ollama/ollama, livenessProbe: {httpGet: {path: /, port: 11434}}}]}}
        ",
    );
    assert_eq!(
        built["service"]["spec"]["ports"],
        json!([{"port": 11434, "targetPort": 11434}])
    );
    assert_eq!(built["ingress"], Value::Null);
}

/// Models that could not be served fail when they are read, each by its index, and not in a pod.
#[test]
fn a_model_without_a_uri_is_refused_by_every_engine() {
    for engine in ["localai", "vllm", "deepspeed-mii", "triton"] {
        let problems = read(&aideployment(
            "m",
            &format!("{{engine: {{name: {engine}}}, models: [{{uri: ' '}}]}}"),
        ))
        .unwrap_err();
        assert!(
            problems.to_string().starts_with("spec.models[0].uri: is empty"),
            "{engine}: {problems}"
        );
    }
}
