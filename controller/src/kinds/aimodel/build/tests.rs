use berth_crds::names;
use berth_crds::youxam::AIModel;
use berth_crds::youxam::aimodel::SecretKey;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::*;
use crate::kinds::aimodel::fixtures::{aimodel, child, defaults, observed, read, sample};
use crate::kinds::aimodel::validate::validate;
use crate::kinds::children::subset::pruned;

fn sent(object: &impl serde::Serialize) -> Value {
    pruned(serde_json::to_value(object).unwrap())
}

fn built(object: &AIModel, observed: &Observed) -> Children {
    build(&read(object).unwrap(), observed, true)
}

fn deployment(object: &AIModel, observed: &Observed) -> Value {
    sent(&built(object, observed).deployment)
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// With a Deployment that was made before.
fn made() -> Observed {
    Observed {
        deployment: Some(child(json!({"metadata": {"uid": "d"}}))),
        ..observed()
    }
}

#[test]
fn the_original_s_objects_for_its_demo() {
    let children = built(&sample("ai-model-sample"), &observed());
    assert_eq!(
        sent(&children.service_account),
        yaml(
            "{apiVersion: v1, kind: ServiceAccount, metadata: {name: ai-model-sample-deployment-sa, namespace: shop}}"
        )
    );
    assert_eq!(
        sent(&children.role),
        yaml(
            "
            apiVersion: rbac.authorization.k8s.io/v1
            kind: Role
            metadata: {name: ai-model-sample-deployment-event-role, namespace: shop}
            rules: [{apiGroups: [''], resources: [events], verbs: [create, patch, update]}]
            "
        )
    );
    assert_eq!(
        sent(&children.role_binding),
        yaml(
            "
            apiVersion: rbac.authorization.k8s.io/v1
            kind: RoleBinding
            metadata: {name: ai-model-sample-deployment-event-rolebinding, namespace: shop}
            subjects: [{kind: ServiceAccount, name: ai-model-sample-deployment-sa, namespace: shop}]
            roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: ai-model-sample-deployment-event-role}
            "
        )
    );
    assert_eq!(
        sent(&children.deployment),
        yaml(
            "
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: ai-model-sample-deployment, namespace: shop}
            spec:
              replicas: 3
              selector: {matchLabels: {aimodel-internel-selector: ai-model-sample}}
              template:
                metadata:
                  labels: {app: ai-model, aimodel-internel-selector: ai-model-sample}
                  annotations: {last-serviceaccount-update: '2026-01-02T03:04:05Z'}
                spec:
                  serviceAccountName: ai-model-sample-deployment-sa
                  containers:
                  - name: ai-model-sample
                    image: youxam/uplion-aimodel-operator-test-worker:latest
                    env:
                    - {name: NODE_TYPE, value: local}
                    - {name: MODEL_NAME, value: TinyLlama-1.1B}
                    - {name: API_URL, value: ''}
                    - {name: API_KEY, value: ''}
                    - {name: MAX_PROCESS_NUM, value: '128'}
                    - {name: PULSAR_URL, value: 'pulsar://pulsar:6650'}
                    - {name: PULSAR_TOKEN, value: ''}
                    - {name: RES_TOPIC_NAME, value: res-topic}
                    - {name: AIMODEL_NAME, value: ai-model-sample}
                    - {name: AIMODEL_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
            "
        )
    );
    assert_eq!(
        children.scaled_object.unwrap(),
        yaml(
            "
            apiVersion: keda.sh/v1alpha1
            kind: ScaledObject
            metadata: {name: ai-model-sample-scaledobject, namespace: shop}
            spec:
              scaleTargetRef: {name: ai-model-sample-deployment}
              minReplicaCount: 1
              pollingInterval: 5
              triggers:
              - type: pulsar
                metadata:
                  adminURL: http://pulsar:8080
                  topic: persistent://public/default/model-TinyLlama-1.1B
                  subscription: model-TinyLlama-1.1B-subscription
                  msgBacklogThreshold: '2'
            "
        )
    );
    assert_eq!(children.trigger_authentication, None);
}

#[test]
fn a_remote_model_has_its_address_key_and_limit_in_the_environment() {
    let deployment = deployment(&sample("remote-model"), &observed());
    let env = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
    let value = |name: &str| {
        let all = env.as_array().unwrap();
        all.iter().find(|v| v["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!(value("NODE_TYPE"), "remote");
    assert_eq!(value("API_URL"), "https://api.openai.com");
    assert_eq!(value("API_KEY"), "xxxxxxx");
    assert_eq!(value("MAX_PROCESS_NUM"), "256");
}

#[test]
fn labels_go_to_the_pods_and_to_nothing_else() {
    let object = sample("aimodel-sample");
    let deployment = deployment(&object, &observed());
    assert_eq!(
        deployment["metadata"].get("labels"),
        None,
        "A7.11: what others put there is theirs"
    );
    let labels = deployment["spec"]["template"]["metadata"]["labels"]
        .as_object()
        .unwrap();
    assert_eq!(labels.len(), 6);
    assert_eq!(
        deployment["spec"]["selector"],
        json!({"matchLabels": {"aimodel-internel-selector": "aimodel-sample"}})
    );
    // A label of that name on the object cannot lead the selector astray.
    let astray = aimodel(|m| {
        m.labels_mut().insert(keys::SELECTOR.into(), "other".into());
    });
    let labels = &self::deployment(&astray, &observed())["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels[keys::SELECTOR], "ai-model-plain");
}

/// A7.2: the original rolled out twice on every change, and restarted all pods to scale them.
#[test]
fn only_what_the_pods_are_made_of_changes_their_template() {
    let template = |object: &AIModel, observed: &Observed| deployment(object, observed)["spec"]["template"].clone();
    let before = template(&aimodel(|_| {}), &observed());
    let changes: [fn(&mut AIModel); 2] = [
        |m| m.spec.replicas = Some(9),
        |m| m.spec.msg_backlog_threshold = Some(5),
    ];
    for change in changes {
        assert_eq!(template(&aimodel(change), &observed()), before);
    }
    assert_eq!(
        template(&aimodel(|_| {}), &made()),
        before,
        "the second look is as the first"
    );
    let annotations = before["metadata"]["annotations"].as_object().unwrap();
    assert!(annotations.keys().eq([keys::SERVICE_ACCOUNT_SEEN]), "{annotations:?}");
}

#[test]
fn pods_are_made_anew_when_their_service_account_was() {
    let again = Observed {
        service_account: Some(child(
            json!({"metadata": {"creationTimestamp": "2026-01-02T09:00:00Z"}}),
        )),
        ..made()
    };
    let deployment = deployment(&aimodel(|_| {}), &again);
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(
        *annotations,
        json!({"last-serviceaccount-update": "2026-01-02T09:00:00Z"})
    );
    let none = Observed {
        service_account: None,
        ..made()
    };
    assert_eq!(built(&aimodel(|_| {}), &none).deployment, None);
}

/// A7.4: the original set the number back on any other change, and fought the HPA.
#[test]
fn the_number_is_left_to_keda_once_there_are_workers() {
    let number = |object: &AIModel, observed: &Observed| deployment(object, observed)["spec"].get("replicas").cloned();
    let scaled = sample("ai-model-sample");
    assert_eq!(number(&scaled, &observed()), Some(json!(3)), "so many at first");
    assert_eq!(number(&scaled, &made()), None);
    assert_eq!(number(&sample("ai-model-plain"), &made()), Some(json!(3)));
    // Where nobody would scale, the spec says how many there are.
    let without_keda = Observed { keda: false, ..made() };
    assert_eq!(number(&scaled, &without_keda), Some(json!(3)));
    let own = Observed {
        autoscaler: Some("theirs".into()),
        ..made()
    };
    assert_eq!(
        number(&sample("ai-model-plain"), &own),
        None,
        "an autoscaler of the user's"
    );
    let unset = defaults(|pulsar| pulsar.admin_url.clear());
    let model = validate(&scaled, &unset).unwrap();
    let children = build(&model, &made(), true);
    assert_eq!(children.deployment.unwrap().spec.unwrap().replicas, Some(3));
    assert_eq!(children.scaled_object, None, "A7.9: there is no address to ask");
}

#[test]
fn workers_that_failed_are_not_scaled_and_keep_their_number() {
    let model = read(&sample("ai-model-sample")).unwrap();
    let children = build(&model, &made(), false);
    assert_eq!((children.scaled_object, children.trigger_authentication), (None, None));
    assert_eq!(children.deployment.unwrap().spec.unwrap().replicas, None);
}

/// A7.1: a changed threshold failed for ever, and a changed model left the old topic.
#[test]
fn the_scaled_object_follows_the_whole_spec() {
    let object = aimodel(|m| {
        m.spec.model = "other".into();
        m.spec.msg_backlog_threshold = Some(7);
    });
    let scaled = built(&object, &made()).scaled_object.unwrap();
    let metadata = &scaled["spec"]["triggers"][0]["metadata"];
    assert_eq!(metadata["topic"], "persistent://public/default/model-other");
    assert_eq!(metadata["subscription"], "model-other-subscription");
    assert_eq!(metadata["msgBacklogThreshold"], "7");
}

/// A7.10
#[test]
fn without_keda_nothing_of_it_is_made() {
    let without = Observed {
        keda: false,
        ..observed()
    };
    let children = built(&sample("ai-model-sample"), &without);
    assert_eq!((children.scaled_object, children.trigger_authentication), (None, None));
    assert!(children.deployment.is_some());
}

/// A7.8, A7.9
#[test]
fn keys_and_tokens_can_stay_in_secrets_and_keda_uses_the_token_that_the_workers_have() {
    let object = aimodel(|m| {
        m.spec.msg_backlog_threshold = Some(2);
        m.spec.api_key_secret_ref = Some(SecretKey {
            name: "openai".into(),
            key: "key".into(),
        });
        m.spec.pulsar_token_secret_ref = Some(SecretKey {
            name: "pulsar".into(),
            key: "token".into(),
        });
    });
    let children = built(&object, &observed());
    let deployment = sent(&children.deployment);
    let env = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(
        env[3],
        json!({"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "openai", "key": "key"}}})
    );
    assert_eq!(
        env[6],
        json!({"name": "PULSAR_TOKEN", "valueFrom": {"secretKeyRef": {"name": "pulsar", "key": "token"}}})
    );
    let authentication = children.trigger_authentication.unwrap();
    assert_eq!(
        authentication,
        yaml(
            "
            apiVersion: keda.sh/v1alpha1
            kind: TriggerAuthentication
            metadata: {name: ai-model-plain-scaledobject, namespace: shop}
            spec: {env: [{parameter: bearerToken, name: PULSAR_TOKEN, containerName: ai-model-plain}]}
            "
        )
    );
    let trigger = &children.scaled_object.unwrap()["spec"]["triggers"][0];
    assert_eq!(
        trigger["authenticationRef"],
        json!({"name": "ai-model-plain-scaledobject"})
    );
    assert_eq!(trigger["metadata"]["authModes"], "bearer");

    // The installation's own token is used the same way.
    let installation = defaults(|pulsar| pulsar.token = "t".into());
    let children = build(
        &validate(&sample("scaled-model"), &installation).unwrap(),
        &observed(),
        true,
    );
    assert!(children.trigger_authentication.is_some());
}

#[test]
fn gpus_are_asked_for_by_annotations_and_berth_picks_the_node() {
    let object = aimodel(|m| {
        let annotations = m.annotations_mut();
        annotations.insert(names::GPU_COUNT.into(), "2".into());
        annotations.insert(names::GPU_CLASS.into(), "h100, a100".into());
        annotations.insert("example.com/other".into(), "x".into());
        m.spec.node_selector.insert("zone".into(), "a".into());
    });
    let template = deployment(&object, &observed())["spec"]["template"].clone();
    let spec = &template["spec"];
    assert_eq!(spec["schedulingGates"], json!([{"name": names::GATE}]));
    assert_eq!(spec["runtimeClassName"], "nvidia");
    assert_eq!(spec["nodeSelector"], json!({"zone": "a"}));
    assert_eq!(
        spec["containers"][0]["resources"],
        json!({"limits": {"nvidia.com/gpu": "2"}, "requests": {"nvidia.com/gpu": "2"}})
    );
    assert_eq!(
        template["metadata"]["annotations"],
        json!({"berth.dev/gpu-class": "h100, a100", "last-serviceaccount-update": "2026-01-02T03:04:05Z"})
    );
}
