#!/usr/bin/env bash
# Watches what the two admission policies let the controller do and what they refuse it, on the cluster of the current KUBECONFIG with the
# chart installed. Acts as the controller by impersonation; makes one node and a few gated pods, and for some checks gives the controller
# every right, so this is for test clusters. NAMESPACE is the release's; ALLOWED_KEY one of its labeler.allowKeys, if it has any.
set -uo pipefail
NS=${NAMESPACE:-berth-system}
ALLOWED_KEY=${ALLOWED_KEY:-}
NODE=berth-admission-check
K="kubectl --as=system:serviceaccount:$NS:berth-controller --as-group=system:serviceaccounts --as-group=system:serviceaccounts:$NS --as-group=system:authenticated"
pass=0; fail=0
# ok WHAT COMMAND…: the command succeeds.
ok() {
  local what=$1 out; shift
  if out=$("$@" 2>&1); then pass=$((pass + 1)); echo "ok      $what"; else fail=$((fail + 1)); echo "FAILED  $what: $out"; fi
}
# no WHAT MESSAGE COMMAND…: the command is refused, with that message.
no() {
  local what=$1 want=$2 out; shift 2
  if out=$("$@" 2>&1); then fail=$((fail + 1)); echo "FAILED  $what: was let through"
  elif grep -qF -- "$want" <<<"$out"; then pass=$((pass + 1)); out=${out##*denied request: }; echo "denied  $what: ${out%%$'\n'*}"
  else fail=$((fail + 1)); echo "FAILED  $what: another message: $out"; fi
}
clean() {
  kubectl delete clusterrole,clusterrolebinding berth-admission-check --ignore-not-found >/dev/null 2>&1
  kubectl delete clusterrolebinding berth-admission-check-wide --ignore-not-found >/dev/null 2>&1
  kubectl delete node $NODE --ignore-not-found >/dev/null 2>&1
  kubectl -n default delete pod berth-p1 berth-p2 --ignore-not-found --force --grace-period=0 >/dev/null 2>&1
  kubectl -n "$NS" delete pod berth-c1 --ignore-not-found --force --grace-period=0 >/dev/null 2>&1
}
trap clean EXIT
clean
kubectl apply -f - <<Y >/dev/null
apiVersion: v1
kind: Node
metadata: {name: $NODE, labels: {kubernetes.io/arch: amd64, kubernetes.io/hostname: $NODE}, annotations: {a: b, berth.dev/paused: "true"}}
spec: {taints: [{key: foreign, effect: NoSchedule}]}
Y
kubectl patch node $NODE --subresource status --type merge -p '{"status":{"conditions":[{"type":"Ready","status":"True","reason":"x","message":"x","lastTransitionTime":"2026-01-01T00:00:00Z","lastHeartbeatTime":"2026-01-01T00:00:00Z"}]}}' >/dev/null
# kubectl patch reads first; the controller need not
kubectl create clusterrole berth-admission-check --verb=get --resource=nodes,pods,nodes/status >/dev/null; kubectl create clusterrolebinding berth-admission-check --clusterrole=berth-admission-check --serviceaccount=$NS:berth-controller >/dev/null
sleep 1
ml() { printf '{"metadata":{"labels":{"%s":%s}}}' "$1" "$2"; }
# A policy takes some seconds to act after it was installed.
for _ in $(seq 30); do $K patch node $NODE --type merge -p "$(ml kubernetes.io/probe '"x"')" >/dev/null 2>&1 || break; sleep 1; done
kubectl label node $NODE kubernetes.io/probe- >/dev/null
N="$K patch node $NODE --type merge -p"
ok "hardware label nvidia.com/gpu.product" $N "$(ml nvidia.com/gpu.product '"Tesla-T4"')"
ok "hardware label beta.amd.com/gpu.family" $N "$(ml beta.amd.com/gpu.family '"AI"')"
ok "hardware label feature.node.kubernetes.io/pci-10de.present" $N "$(ml feature.node.kubernetes.io/pci-10de.present '"true"')"
ok "own label berth.dev/gpu-class" $N "$(ml berth.dev/gpu-class '"t4"')"
ok "label of an open domain foo/bar.com" $N "$(ml foo/bar.com '"baz"')"
ok "label without a domain" $N "$(ml team '"x"')"
[[ -z $ALLOWED_KEY ]] || ok "label allowed by value" $N "$(ml "$ALLOWED_KEY" '""')"
ok "take labels away" $N '{"metadata":{"labels":{"team":null,"nvidia.com/gpu.product":null}}}'
ok "a whole label set at once by server-side apply" bash -c "printf 'apiVersion: v1\nkind: Node\nmetadata:\n  name: $NODE\n  labels: {nvidia.com/gpu.count: \"4\", berth.dev/gpu-class: t4}\n' | $K apply --server-side --force-conflicts --field-manager=berth/nodes-hardware -f -"
no "protected kubernetes.io/arch"   "protected domains: kubernetes.io/arch" $N "$(ml kubernetes.io/arch '"arm64"')"
no "protected, removed"             "protected domains: kubernetes.io/hostname" $N "$(ml kubernetes.io/hostname null)"
no "protected subdomain node-role"  "protected domains: node-role.kubernetes.io/control-plane" $N "$(ml node-role.kubernetes.io/control-plane '""')"
no "foreign cloud domain"           "protected domains: cloud.google.com/gke-accelerator" $N "$(ml cloud.google.com/gke-accelerator '"nvidia-l4"')"
no "feature.node but not pci-"      "protected domains: feature.node.kubernetes.io/cpu-x" $N "$(ml feature.node.kubernetes.io/cpu-x '"true"')"
no "amd.com but not gpu"            "protected domains: amd.com/cpu" $N "$(ml amd.com/cpu '"x"')"
no "annotation"                     "may not change of a node: metadata.annotations" $N '{"metadata":{"annotations":{"x":"y"}}}'
no "finalizer"                      "may not change of a node: metadata.finalizers" $N '{"metadata":{"finalizers":["berth.dev/x"]}}'
no "unschedulable"                  "may not change of a node: spec.unschedulable" $N '{"spec":{"unschedulable":true}}'
no "podCIDR"                        "may not change of a node: spec.podCIDR" $N '{"spec":{"podCIDR":"10.0.0.0/24","podCIDRs":["10.0.0.0/24"]}}'
J="$K patch node $NODE --type json -p"
# Place of a taint in the list, to which the node controller adds its own.
at() { kubectl get node $NODE -o jsonpath='{range .spec.taints[*]}{.key}{"\n"}{end}' | grep -nxF "$1" | awk -F: '{print $1 - 1}'; }
no "foreign taint added"            "but berth.dev/gpu-unhealthy:NoSchedule: other:NoExecute" $J '[{"op":"add","path":"/spec/taints/-","value":{"key":"other","effect":"NoExecute"}}]'
no "foreign taint removed"          "but berth.dev/gpu-unhealthy:NoSchedule: foreign:NoSchedule" $J "[{\"op\":\"remove\",\"path\":\"/spec/taints/$(at foreign)\"}]"
no "foreign taint changed"          "but berth.dev/gpu-unhealthy:NoSchedule: foreign:NoSchedule" $J "[{\"op\":\"add\",\"path\":\"/spec/taints/$(at foreign)/value\",\"value\":\"v\"}]"
no "own key, another effect"        "but berth.dev/gpu-unhealthy:NoSchedule: berth.dev/gpu-unhealthy:NoExecute" $J '[{"op":"add","path":"/spec/taints/-","value":{"key":"berth.dev/gpu-unhealthy","effect":"NoExecute"}}]'
ok "own taint added"                $J '[{"op":"add","path":"/spec/taints/0","value":{"key":"berth.dev/gpu-unhealthy","effect":"NoSchedule"}}]'
ok "own taint removed"              $J "[{\"op\":\"remove\",\"path\":\"/spec/taints/$(at berth.dev/gpu-unhealthy)\"}]"
no "RBAC: create node"  "forbidden" bash -c "printf 'apiVersion: v1\nkind: Node\nmetadata: {name: berth-n2}\n' | $K create -f -"
no "RBAC: delete node"  "forbidden" $K delete node $NODE
no "all conditions taken away"      "conditions of others: Ready" $N '{"status":{"conditions":[]}}' --subresource status
# wider rights than the chart gives, to see that the policies hold without RBAC's help
kubectl create clusterrolebinding berth-admission-check-wide --clusterrole=cluster-admin --serviceaccount=$NS:berth-controller >/dev/null; sleep 1
C='"status":"True","reason":"x","message":"x","lastTransitionTime":"2026-01-01T00:00:00Z","lastHeartbeatTime":"2026-01-01T00:00:00Z"'
S="$K patch node $NODE --subresource status --type strategic -p"
ok "wide: own condition"            $S "{\"status\":{\"conditions\":[{\"type\":\"nvidia.com/GPUReady\",$C}]}}"
no "wide: foreign condition"        "conditions of others: Ready" $S '{"status":{"conditions":[{"type":"Ready","status":"False"}]}}'
no "wide: allocatable"              "status.allocatable" $S '{"status":{"allocatable":{"nvidia.com/gpu":"8"}}}'
no "wide: label through the status" "protected domains: kubernetes.io/arch" $S "$(ml kubernetes.io/arch '"arm64"')"
no "wide: create node"              "not CREATE them" bash -c "printf 'apiVersion: v1\nkind: Node\nmetadata: {name: berth-n2}\n' | $K create -f -"
no "wide: delete node"              "not DELETE them" $K delete node $NODE
mkpod() { kubectl -n $1 delete pod $2 --ignore-not-found --force >/dev/null 2>&1; kubectl -n $1 apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: $2, labels: {app: x}, annotations: {other.io/a: b}}
spec:
  schedulingGates: [$3]
  nodeSelector: {team: a}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: k, operator: In, values: [a, b]}]}]}
      preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchExpressions: [{key: z, operator: Exists}]}}]
  containers: [{name: serving, image: x, resources: {limits: {nvidia.com/gpu: 1, cpu: 1500m, memory: 1Gi}, requests: {cpu: "0.5"}}}]
Y
}
G='{name: berth.dev/placement}'; mkpod default berth-p1 "$G, {name: other.io/gate}"
P="$K -n default patch pod berth-p1 --type json -p"; M="$K -n default patch pod berth-p1 --type merge -p"
R=/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms
no "wide: create pod"               "not CREATE pods" bash -c "printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: berth-p9}\nspec: {containers: [{name: a, image: b}]}\n' | $K -n default create -f -"
no "wide: pod status"               "not UPDATE pods/status" $K -n default patch pod berth-p1 --subresource status --type merge -p '{"status":{"message":"x"}}'
no "wide: bind a pod"               "not CREATE pods/binding" bash -c "printf '{\"apiVersion\":\"v1\",\"kind\":\"Binding\",\"metadata\":{\"name\":\"berth-p1\"},\"target\":{\"kind\":\"Node\",\"name\":\"$NODE\"}}' | $K create --raw /api/v1/namespaces/default/pods/berth-p1/binding -f -"
no "wide: exec"                     "not CONNECT pods/exec" $K -n default exec berth-p1 -- true
kubectl delete clusterrolebinding berth-admission-check-wide >/dev/null; sleep 1
no "RBAC: create pod" "forbidden"   bash -c "printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: berth-p9}\nspec: {containers: [{name: a, image: b}]}\n' | $K -n default create -f -"
no "add a gate (API server)"        "Forbidden" $P '[{"op":"add","path":"/spec/schedulingGates/-","value":{"name":"x.io/y"}}]'
no "remove a foreign gate"          "touch no other: other.io/gate" $P '[{"op":"remove","path":"/spec/schedulingGates/1"}]'
no "foreign annotation"             "annotations of others: other.io/a" $M '{"metadata":{"annotations":{"other.io/a":"c"}}}'
no "foreign annotation removed"     "annotations of others: other.io/a" $M '{"metadata":{"annotations":{"other.io/a":null}}}'
no "label"                          "may not write pod labels: app" $M '{"metadata":{"labels":{"app":"y"}}}'
no "leader label on a foreign pod"  "may not write pod labels: berth.dev/leader" $M '{"metadata":{"labels":{"berth.dev/leader":"true"}}}'
no "finalizer on a pod"             "metadata.finalizers" $M '{"metadata":{"finalizers":["berth.dev/x"]}}'
no "image"                          "may not change of a pod: spec.containers" $P '[{"op":"replace","path":"/spec/containers/0/image","value":"evil"}]'
no "toleration"                     "may not change of a pod: spec.tolerations" $P '[{"op":"add","path":"/spec/tolerations/-","value":{"key":"q","operator":"Exists"}}]'
no "nodeSelector"                   "may not change of a pod: spec.nodeSelector" $M '{"spec":{"nodeSelector":{"more":"x"}}}'
no "loosen affinity (API server)"   "no additions/deletions" $P "[{\"op\":\"add\",\"path\":\"$R/-\",\"value\":{\"matchExpressions\":[{\"key\":\"q\",\"operator\":\"Exists\"}]}}]"
no "drop a requirement (API server)" "only additions are allowed" $P "[{\"op\":\"replace\",\"path\":\"$R/0\",\"value\":{\"matchFields\":[{\"key\":\"metadata.name\",\"operator\":\"In\",\"values\":[\"berth-admission-check\"]}]}}]"
no "drop the preference"            "may only tighten" $P '[{"op":"remove","path":"/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution"}]'
no "add pod affinity"               "" $P '[{"op":"add","path":"/spec/affinity/podAntiAffinity","value":{"requiredDuringSchedulingIgnoredDuringExecution":[{"topologyKey":"kubernetes.io/hostname","labelSelector":{}}]}}]'
PIN="{\"op\":\"add\",\"path\":\"$R/0/matchFields\",\"value\":[{\"key\":\"metadata.name\",\"operator\":\"In\",\"values\":[\"berth-admission-check\"]}]}"
ok "own annotation"                 $M '{"metadata":{"annotations":{"berth.dev/placed-because":"why"}}}'
ok "pin, annotate and lift our gate in one patch" $P "[{\"op\":\"test\",\"path\":\"/spec/schedulingGates/0/name\",\"value\":\"berth.dev/placement\"},$PIN,{\"op\":\"remove\",\"path\":\"/spec/schedulingGates/0\"},{\"op\":\"add\",\"path\":\"/metadata/annotations/berth.dev~1placed-because\",\"value\":\"w\"}]"
no "tighten after our gate went"    "only while its own gate holds" $P "[{\"op\":\"add\",\"path\":\"$R/0/matchExpressions/-\",\"value\":{\"key\":\"q\",\"operator\":\"Exists\"}}]"
ok "delete a pod"                   $K -n default delete pod berth-p1 --force
kubectl -n default apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: berth-p2}
# No node has the label: nobody but this script touches the pod.
spec: {schedulingGates: [$G], nodeSelector: {berth-admission-check: "none"}, containers: [{name: serving, image: x}]}
Y
ok "pin a pod that has no affinity" $K -n default patch pod berth-p2 --type json -p '[{"op":"add","path":"/spec/affinity","value":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchFields":[{"key":"metadata.name","operator":"In","values":["berth-admission-check"]}]}]}}}},{"op":"remove","path":"/spec/schedulingGates"},{"op":"add","path":"/metadata/annotations/berth.dev~1placed-because","value":"w"}]'
mkpod $NS berth-c1 "{name: other.io/gate}"
ok "leader label on a pod of the own namespace" $K -n $NS patch pod berth-c1 --type merge -p '{"metadata":{"labels":{"berth.dev/leader":"true"}}}'
ok "leader label taken away"        $K -n $NS patch pod berth-c1 --type merge -p '{"metadata":{"labels":{"berth.dev/leader":null}}}'
# other users are untouched
ok "admin: protected label"         kubectl label node $NODE kubernetes.io/arch=arm64 --overwrite
ok "admin: cordon"                  kubectl cordon $NODE
ok "admin: pod annotation"          kubectl -n $NS annotate pod berth-c1 other.io/x=y
O="kubectl --as=system:serviceaccount:$NS:other --as-group=system:masters"
ok "another ServiceAccount of the namespace: protected label" $O label node $NODE kubernetes.io/x=y
echo "$pass passed, $fail failed"
[[ $fail == 0 ]]
