use serde_json::{Value, json};

use super::*;
use crate::kinds::mlmodel::download::SCRIPT;
use crate::kinds::mlmodel::fixtures::{SAVED_MODEL, annotated, children, claim, model, read, seen, sent};

const PREPARED: Stage = Stage::Prepared { is_busy: false };

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn all(children: &Children) -> Value {
    json!({
        "claim": sent(&children.claim),
        "job": sent(&children.job),
        "deployment": sent(&children.deployment),
        "service": sent(&children.service),
    })
}

fn server(spec: &str) -> Value {
    sent(&children(&model(spec), &Stage::Downloaded).deployment)["spec"].take()
}

#[test]
fn a_download_beside_running_servers_goes_to_the_node_that_has_the_volume() {
    let model = model(SAVED_MODEL);
    let running = Observed {
        servers: vec![(crate::cluster::Pod::default(), None)],
        ..Observed::default()
    };
    let affinity = |observed: &Observed, model: &Validated| {
        let job = sent(&build(model, &PREPARED, observed, false).job);
        job["spec"]["template"]["spec"]["affinity"].clone()
    };
    let required = "/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0/labelSelector/matchLabels";
    let wanted = json!({"app": keys::server(&model.name)});
    assert_eq!(affinity(&running, &model).pointer(required), Some(&wanted));
    assert!(affinity(&Observed::default(), &model).is_null(), "nobody holds it");
    let mut many = model.clone();
    many.access_mode = AccessMode::ReadWriteMany;
    assert!(affinity(&running, &many).is_null(), "any node has it");
}

/// Everything that an unchanged manifest of the original leads to, key by key. The script stands for itself.
#[test]
fn the_golden_shape() {
    let model = model(SAVED_MODEL);
    let source = &model.download.source;
    let mut prepared = all(&children(&model, &PREPARED));
    let args = prepared
        .pointer_mut("/job/spec/template/spec/containers/0/args")
        .unwrap();
    assert_eq!(*args, json!([SCRIPT]));
    *args = json!("(script)");
    let want = r#"
        claim:
          apiVersion: v1
          kind: PersistentVolumeClaim
          metadata: {name: net-pvc, namespace: shop, annotations: {berth.dev/model-source: (source)}}
          spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 5Gi}}}
        job:
          apiVersion: batch/v1
          kind: Job
          metadata:
            name: net-download-job
            namespace: shop
            labels: {job-name: net-download-job}
            annotations: {berth.dev/model-source: (source)}
          spec:
            backoffLimit: 3
            ttlSecondsAfterFinished: 120
            template:
              metadata: {labels: {job-name: net-download-job}}
              spec:
                restartPolicy: OnFailure
                automountServiceAccountToken: false
                securityContext:
                  runAsNonRoot: true
                  runAsUser: 65532
                  runAsGroup: 65532
                  fsGroup: 65532
                  fsGroupChangePolicy: OnRootMismatch
                  seccompProfile: {type: RuntimeDefault}
                volumes: [{name: model-storage, persistentVolumeClaim: {claimName: net-pvc}}]
                containers:
                - name: net-download-container
                  image: curl
                  command: [/bin/sh, -c]
                  args: (script)
                  env:
                  - {name: MODEL_DIR, value: /mnt/model}
                  - {name: MODEL_FILE, value: 4.tar.gz}
                  - {name: MODEL_MARKER, value: saved_model.pb}
                  - {name: MODEL_NAME, value: net}
                  - {name: MODEL_RENAME, value: ""}
                  - {name: MODEL_SHA256, value: ""}
                  - {name: MODEL_SOURCE, value: (source)}
                  - {name: MODEL_UNPACK, value: "yes"}
                  - {name: MODEL_URL, value: "https://storage.googleapis.com/tfhub-modules/mobilenet_v2/4.tar.gz"}
                  volumeMounts: [{name: model-storage, mountPath: /mnt/model}]
                  terminationMessagePolicy: FallbackToLogsOnError
                  securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
        deployment: left
        service: left
    "#;
    assert_eq!(prepared, yaml(&want.replace("(source)", source)));

    let want = r#"
        claim:
          apiVersion: v1
          kind: PersistentVolumeClaim
          metadata:
            name: net-pvc
            namespace: shop
            annotations: {berth.dev/model-source: (source), berth.dev/model-downloaded: (source)}
          spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 5Gi}}}
        job: left
        deployment:
          apiVersion: apps/v1
          kind: Deployment
          metadata: {name: net-server, namespace: shop, annotations: {berth.dev/model-source: (source)}}
          spec:
            replicas: 1
            selector: {matchLabels: {app: net-server}}
            strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: "100%"}}
            template:
              metadata: {labels: {app: net-server}}
              spec:
                automountServiceAccountToken: false
                volumes: [{name: model-storage, persistentVolumeClaim: {claimName: net-pvc}}]
                containers:
                - name: tf-serving
                  image: tensorflow/serving:latest
                  args: [--model_name=net, --model_base_path=/models/net, --rest_api_port=8501]
                  ports: [{containerPort: 8501}]
                  readinessProbe: {httpGet: {path: /v1/models/net, port: 8501}}
                  volumeMounts: [{name: model-storage, mountPath: /models}]
        service:
          apiVersion: v1
          kind: Service
          metadata: {name: net-service, namespace: shop}
          spec: {ports: [{port: 8501, targetPort: 8501}], selector: {app: net-server}}
    "#;
    assert_eq!(
        all(&children(&model, &Stage::Downloaded)),
        yaml(&want.replace("(source)", source))
    );
}

/// B7.1: there was never a Service, and its address was told all the same.
#[test]
fn there_is_a_service_if_and_only_if_it_is_exposed() {
    let hidden = model(&SAVED_MODEL.replace("expose: true", "expose: false"));
    assert_eq!(children(&hidden, &Stage::Downloaded).service, Wanted::Gone);
    assert!(matches!(
        children(&model(SAVED_MODEL), &Stage::Downloaded).service,
        Wanted::Like(_)
    ));
}

/// B7.8: the address went into a shell.
#[test]
fn what_users_write_reaches_the_shell_by_environment_only() {
    let spec = "{modelURL: 'https://h/$(MODEL_DIR)/$(rm -rf)/a`b`;c', storageSize: 1Gi, framework: tensorflow}";
    let job = sent(&children(&model(spec), &PREPARED).job);
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["args"], json!([SCRIPT]));
    let env = container["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|e| e["name"] == name).unwrap()["value"].clone();
    // Kubernetes makes `$$` one `$` again, and replaces nothing.
    assert_eq!(value("MODEL_URL"), "https://h/$$(MODEL_DIR)/$$(rm%20-rf)/a%60b%60;c");
    assert_eq!(value("MODEL_FILE"), "a`b`;c");
    assert!(
        !SCRIPT.contains("$$") && !SCRIPT.contains("$(MODEL"),
        "Kubernetes would change the script"
    );
}

#[test]
fn each_framework_has_its_server() {
    let container = |spec: &str| server(spec)["template"]["spec"]["containers"][0].take();
    let onnx = container("{modelURL: 'https://h/a.onnx', storageSize: 1Gi, framework: onnx}");
    assert_eq!(
        onnx["args"],
        json!([
            "tritonserver",
            "--model-repository=/models",
            "--model-control-mode=explicit",
            "--load-model=net"
        ])
    );
    assert_eq!(
        onnx["readinessProbe"]["httpGet"],
        json!({"path": "/v2/models/net/ready", "port": 8000})
    );
    let torch = container("{modelURL: 'https://h/a$(B).mar', storageSize: 1Gi, framework: pytorch}");
    assert_eq!(torch["command"], json!(["torchserve"]));
    assert_eq!(
        torch["args"].as_array().unwrap().last().unwrap(),
        "--models=net=a$$(B).mar"
    );
    let forest = container("{modelURL: 'https://h/m.joblib', storageSize: 1Gi, framework: sklearn}");
    let env = forest["env"].as_array().unwrap();
    assert!(
        env.contains(&json!({"name": "MLSERVER_MODEL_URI", "value": "/models/net/1/m.joblib"})),
        "{env:?}"
    );
    let own = container("{modelURL: 'https://h/m.h5', storageSize: 1Gi, framework: keras, image: own}");
    assert!(
        own["env"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "MODEL_PATH", "value": "/models/net/1"}))
    );
    assert_eq!(own["readinessProbe"], json!({"tcpSocket": {"port": 8501}}));
}

/// B7.10: replicas on other nodes could not mount the volume.
#[test]
fn replicas_of_a_volume_for_one_node_share_that_node() {
    let spec = SAVED_MODEL.replace("replicas: 1", "replicas: 3");
    let affinity = yaml(
        "podAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: net-server}}}",
    );
    assert_eq!(server(&spec)["template"]["spec"]["affinity"], affinity);
    let many = server(&format!("{spec}\n    accessMode: ReadWriteMany"));
    assert_eq!(many["template"]["spec"]["affinity"], Value::Null);
    assert_eq!(many["strategy"], Value::Null);
    assert_eq!(server(SAVED_MODEL)["template"]["spec"]["affinity"], Value::Null);
}

#[test]
fn gpus_are_asked_for_by_annotations() {
    let object = annotated(
        SAVED_MODEL,
        &[("berth.dev/gpu-class", "h100"), ("berth.dev/gpu-count", "2")],
    );
    let built = children(&read(&object).unwrap(), &Stage::Downloaded);
    let template = sent(&built.deployment)["spec"]["template"].take();
    assert_eq!(
        template["metadata"]["annotations"],
        json!({"berth.dev/gpu-class": "h100"})
    );
    assert_eq!(
        template["spec"]["schedulingGates"],
        json!([{"name": "berth.dev/placement"}])
    );
    assert_eq!(
        template["spec"]["containers"][0]["resources"]["limits"],
        json!({"nvidia.com/gpu": "2"})
    );
    // The download needs none.
    let job = sent(&children(&read(&object).unwrap(), &PREPARED).job);
    assert_eq!(job["spec"]["template"]["spec"]["schedulingGates"], Value::Null);
}

#[test]
fn nothing_is_downloaded_before_the_volume_is_there_if_the_installation_says_so() {
    let model = model(SAVED_MODEL);
    let with = |phase: &str, ensure: bool| {
        let observed = Observed {
            claim: Some(claim(&model, &PREPARED, phase)),
            ..Observed::default()
        };
        build(&model, &PREPARED, &observed, ensure).job
    };
    assert_eq!(with("Pending", true), Wanted::Left);
    assert!(matches!(with("Bound", true), Wanted::Like(_)));
    assert!(
        matches!(with("Pending", false), Wanted::Like(_)),
        "a volume may wait for its first consumer"
    );
}

#[test]
fn a_clean_start_takes_everything_away() {
    let built = children(&model(SAVED_MODEL), &Stage::Clearing);
    assert_eq!(
        all(&built),
        json!({"claim": "gone", "job": "gone", "deployment": "gone", "service": "gone"})
    );
}

#[test]
fn a_job_is_made_once_and_never_changed() {
    let model = model(SAVED_MODEL);
    for stage in [Stage::Downloading, Stage::Downloaded, Stage::Lost] {
        assert_eq!(children(&model, &stage).job, Wanted::Left, "{stage:?}");
    }
    let busy = Stage::Prepared { is_busy: true };
    assert_eq!(children(&model, &busy).job, Wanted::Gone, "a failed one makes way");
}

#[test]
fn a_volume_that_was_made_larger_by_hand_is_left_so() {
    let model = model(SAVED_MODEL);
    let mut larger = sent(&children(&model, &PREPARED).claim);
    larger["spec"]["resources"]["requests"]["storage"] = "20Gi".into();
    let observed = Observed {
        claim: Some(seen(larger, json!({"phase": "Bound"}))),
        ..Observed::default()
    };
    let built = build(&model, &Stage::Downloading, &observed, false);
    assert_eq!(sent(&built.claim)["spec"]["resources"]["requests"]["storage"], "20Gi");
}
