use serde_json::{Value, json};

use super::*;
use crate::kinds::modeldeployment::fixtures::{annotated, children, defaults, model, sample, sent, serving};

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn passed(changes: Value) -> Children {
    children(&model(&sample(changes)), &Stage::Passed, &Observed::default())
}

/// The only container of a child's pods.
fn container<T: serde::Serialize>(wanted: &Wanted<T>) -> Value {
    sent(wanted)["spec"]["template"]["spec"]["containers"][0].take()
}

#[test]
fn the_objects_of_the_sample() {
    let model = model(&sample(json!({})));
    let begin = children(&model, &Stage::Begin, &Observed::default());
    let want = yaml(&format!(
        "
        apiVersion: batch/v1
        kind: Job
        metadata:
          name: validate-net
          namespace: shop
          labels: {{model: net, type: validation}}
          annotations: {{berth.dev/revision: {}}}
        spec:
          backoffLimit: 1
          template:
            metadata: {{labels: {{type: validation}}}}
            spec:
              restartPolicy: Never
              containers:
              - name: validate
                image: validator:dev
                imagePullPolicy: IfNotPresent
                command: [python, validate.py]
                env: [{{name: MODEL_URI, value: https://dummy.com/dummy_model.pt}}]
                resources: {{limits: {{cpu: 500m, memory: 512Mi}}, requests: {{cpu: 250m, memory: 256Mi}}}}
        ",
        model.revision
    ));
    assert_eq!(sent(&begin.job), want);
    for left in [sent(&begin.deployment), sent(&begin.service), sent(&begin.alias)] {
        assert_eq!(left, "left", "nothing is served before it has passed");
    }

    let passed = children(&model, &Stage::Passed, &Observed::default());
    assert_eq!(sent(&passed.job), "left");
    let record = format!(
        "{{\"revision\":\"{}\",\"spec\":{{\"modelURI\":\"https://dummy.com/dummy_model.pt\",\"runtime\":\"fastapi-pytorch\",\"runtimeImage\":\"localhost/fastapi-pytorch:dev\",\"resources\":{{\"limits\":{{\"cpu\":\"500m\",\"memory\":\"512Mi\"}},\"requests\":{{\"cpu\":\"250m\",\"memory\":\"256Mi\"}}}},\"version\":\"v1\"}}}}",
        model.revision
    );
    let mut want = yaml(
        "
        apiVersion: apps/v1
        kind: Deployment
        metadata:
          name: inference-net
          namespace: shop
          labels: {model: net, type: inference}
        spec:
          replicas: 1
          selector: {matchLabels: {model: net}}
          template:
            metadata: {labels: {model: net}}
            spec:
              containers:
              - name: inference
                image: localhost/fastapi-pytorch:dev
                imagePullPolicy: IfNotPresent
                env: [{name: MODEL_URI, value: https://dummy.com/dummy_model.pt}]
                ports: [{name: http, containerPort: 8000}]
                readinessProbe: {tcpSocket: {port: 8000}}
                resources: {limits: {cpu: 500m, memory: 512Mi}, requests: {cpu: 250m, memory: 256Mi}}
        ",
    );
    want["metadata"]["annotations"]["berth.dev/served"] = record.clone().into();
    assert_eq!(sent(&passed.deployment), want);
    let mut want = yaml(
        "
        apiVersion: v1
        kind: Service
        metadata: {name: svc-net, namespace: shop}
        spec: {type: ClusterIP, selector: {model: net}, ports: [{name: http, port: 80, targetPort: 8000}]}
        ",
    );
    want["metadata"]["annotations"]["berth.dev/served"] = record.into();
    assert_eq!(sent(&passed.service), want);
    assert_eq!(sent(&passed.autoscaler), "gone");
}

/// C7.1: the original reads `autoscale` and does nothing.
#[test]
fn autoscale_makes_an_autoscaler_which_has_the_number_of_servers() {
    let scaled = passed(json!({"autoscale": true, "maxReplicas": 4}));
    let want = yaml(
        "
        apiVersion: autoscaling/v2
        kind: HorizontalPodAutoscaler
        metadata: {name: inference-net, namespace: shop, labels: {model: net}}
        spec:
          scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: inference-net}
          minReplicas: 1
          maxReplicas: 4
          metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]
        ",
    );
    assert_eq!(sent(&scaled.autoscaler), want);
    assert_eq!(sent(&scaled.deployment)["spec"]["replicas"], Value::Null);
    let fixed = passed(json!({"replicas": 3}));
    assert_eq!(
        (
            sent(&fixed.deployment)["spec"]["replicas"].take(),
            sent(&fixed.autoscaler)
        ),
        (json!(3), json!("gone"))
    );
    // Somebody's own autoscaler has the number too.
    let model = model(&sample(json!({})));
    let driven = Observed {
        driver: Some("theirs".into()),
        ..Observed::default()
    };
    let driven = children(&model, &Stage::Passed, &driven);
    assert_eq!(sent(&driven.deployment)["spec"]["replicas"], Value::Null);
}

/// C7.4: the original edits the spec instead, in a state that is never reached.
#[test]
fn the_last_good_version_goes_on_until_the_next_has_passed() {
    let before = model(&sample(json!({})));
    let after = model(&sample(
        json!({"version": "v2", "modelURI": "https://dummy.com/v2.pt", "resources": {}}),
    ));
    let observed = serving(&before);
    let served = children(&before, &Stage::Passed, &observed);
    for stage in [
        Stage::Begin,
        Stage::Clearing,
        Stage::Running,
        Stage::Unplaced("full".into()),
        Stage::Failed("no".into()),
    ] {
        let now = children(&after, &stage, &observed);
        // As it was: also where somebody deleted it, since the Service remembers.
        let gone = Observed {
            deployment: None,
            ..observed.clone()
        };
        for now in [now, children(&after, &stage, &gone)] {
            assert_eq!(sent(&now.deployment), sent(&served.deployment), "{stage:?}");
            assert_eq!(sent(&now.service), sent(&served.service), "{stage:?}");
            assert_eq!(sent(&now.alias), sent(&served.alias), "{stage:?}");
        }
    }
    let now = children(&after, &Stage::Passed, &observed);
    assert_eq!(container(&now.deployment)["env"][0]["value"], "https://dummy.com/v2.pt");
}

#[test]
fn an_adopted_deployment_is_not_restarted_for_a_version_that_has_not_passed() {
    let before = model(&sample(json!({})));
    let after = model(&sample(json!({"version": "v2"})));
    let mut observed = serving(&before);
    let deployment = observed.deployment.as_mut().unwrap();
    deployment.object["metadata"]["annotations"][names::ADOPTED] = "3".into();
    assert_eq!(sent(&children(&after, &Stage::Running, &observed).deployment), "left");
    assert!(matches!(
        children(&after, &Stage::Passed, &observed).deployment,
        Wanted::Like(_)
    ));
}

/// C7.5: with `Never` no image of a registry is ever had.
#[test]
fn images_are_pulled_where_they_are_not_there() {
    let model = model(&sample(json!({})));
    let begin = children(&model, &Stage::Begin, &Observed::default());
    assert_eq!(container(&begin.job)["imagePullPolicy"], "IfNotPresent");
    assert_eq!(
        container(&passed(json!({})).deployment)["imagePullPolicy"],
        "IfNotPresent"
    );
}

/// C7.6: the original has port 8000 for all, and no command.
#[test]
fn each_runtime_has_its_ports_and_its_command() {
    let triton = passed(json!({"runtime": "triton", "runtimeImage": null, "modelURI": "s3://models/net"}));
    let server = container(&triton.deployment);
    assert_eq!(server["image"], "nvcr.io/nvidia/tritonserver:22.08-py3");
    assert_eq!(server["command"], json!(["tritonserver"]));
    assert_eq!(server["args"], json!(["--model-repository=s3://models/net"]));
    assert_eq!(
        server["readinessProbe"]["httpGet"],
        json!({"path": "/v2/health/ready", "port": 8000})
    );
    let ports = yaml(
        "[{name: http, containerPort: 8000}, {name: grpc, containerPort: 8001}, {name: metrics, containerPort: 8002}]",
    );
    assert_eq!(server["ports"], ports);
    let ports = yaml("[{name: http, port: 80, targetPort: 8000}, {name: grpc, port: 8001, targetPort: 8001}]");
    assert_eq!(sent(&triton.service)["spec"]["ports"], ports);

    let torchserve =
        passed(json!({"runtime": "torchserve", "runtimeImage": null, "modelURI": "https://x.org/net.mar"}));
    let server = container(&torchserve.deployment);
    assert_eq!(server["image"], "pytorch/torchserve:latest");
    assert_eq!(server["command"], json!(["torchserve"]));
    assert_eq!(
        server["args"].as_array().unwrap().last().unwrap(),
        "--models=net=https://x.org/net.mar"
    );
    assert_eq!(
        server["readinessProbe"]["httpGet"],
        json!({"path": "/ping", "port": 8080})
    );
    assert_eq!(
        sent(&torchserve.service)["spec"]["ports"],
        yaml("[{name: http, port: 80, targetPort: 8080}]")
    );
    assert_eq!(
        sent(&torchserve.alias)["spec"]["ports"],
        yaml("[{name: http, port: 8000, targetPort: 8080}]")
    );
}

/// C7.7: the README's name and port, and the code's.
#[test]
fn both_services_lead_to_the_servers() {
    let passed = passed(json!({}));
    let (service, alias) = (sent(&passed.service), sent(&passed.alias));
    let at = |s: &Value| (s["metadata"]["name"].clone(), s["spec"]["ports"][0]["port"].clone());
    assert_eq!(at(&service), (json!("svc-net"), json!(80)));
    assert_eq!(at(&alias), (json!("net-service"), json!(8000)));
    assert_eq!(service["spec"]["selector"], alias["spec"]["selector"]);
}

/// C7.11: whatever carries the label gets the Service's traffic.
#[test]
fn pods_that_validate_never_get_the_service_s_traffic() {
    let model = model(&sample(json!({})));
    let begin = children(&model, &Stage::Begin, &Observed::default());
    let labels = sent(&begin.job)["spec"]["template"]["metadata"]["labels"].take();
    let selector = sent(&passed(json!({})).service)["spec"]["selector"].take();
    let pairs = selector.as_object().unwrap();
    assert!(
        !pairs.is_empty() && pairs.iter().any(|(k, v)| labels[k] != *v),
        "{labels} {selector}"
    );
}

/// C7.12: the original's image is in its source.
#[test]
fn the_validator_s_image_and_resources_are_the_users() {
    let object = sample(json!({"validateResources": {"requests": {"cpu": "100m"}}}));
    let defaults = super::super::validate::Defaults {
        validator_image: "registry.example/validator:3".into(),
        ..defaults()
    };
    let model = super::super::validate::validate(&object, &defaults).unwrap();
    let begin = build(&model, &Stage::Begin, &Observed::default(), &defaults);
    let validator = container(&begin.job);
    assert_eq!(validator["image"], "registry.example/validator:3");
    assert_eq!(validator["resources"], json!({"requests": {"cpu": "100m"}}));
}

#[test]
fn nothing_of_the_user_s_is_expanded_or_read_by_a_shell() {
    let nasty = "s3://m/$(MODEL_URI); rm -rf / `id`";
    let changes = json!({"modelURI": nasty, "validateScript": "$(HOME)/a.py -c x", "runtime": "triton"});
    let model = model(&sample(changes));
    let doubled = nasty.replace('$', "$$");
    let begin = children(&model, &Stage::Begin, &Observed::default());
    let validator = container(&begin.job);
    assert_eq!(validator["command"], json!(["python", "$$(HOME)/a.py -c x"]));
    assert_eq!(validator["env"][0]["value"], doubled);
    let server = container(&children(&model, &Stage::Passed, &Observed::default()).deployment);
    assert_eq!(server["args"], json!([format!("--model-repository={doubled}")]));
}

#[test]
fn servers_with_gpus_wait_for_berth_and_what_validates_them_does_not() {
    let object = annotated(
        sample(json!({})),
        &[(names::GPU_CLASS, "h100,a100"), (names::GPU_COUNT, "2")],
    );
    let model = model(&object);
    let deployment = sent(&children(&model, &Stage::Passed, &Observed::default()).deployment);
    let template = &deployment["spec"]["template"];
    assert_eq!(template["spec"]["schedulingGates"], json!([{"name": names::GATE}]));
    assert_eq!(
        template["metadata"]["annotations"],
        json!({names::GPU_CLASS: "h100,a100"})
    );
    assert_eq!(
        template["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
        "2"
    );
    let job = sent(&children(&model, &Stage::Begin, &Observed::default()).job);
    assert_eq!(job["spec"]["template"]["spec"]["schedulingGates"], Value::Null);
    assert_eq!(
        container(&children(&model, &Stage::Begin, &Observed::default()).job)["resources"]["limits"]["nvidia.com/gpu"],
        Value::Null
    );
}
