#!/usr/bin/env bash
# Lints both charts, sees bad values refused, and compares what they render to with deploy/charts/golden: the default whole, and for
# every set of values in berth/ci what it changes.
# `check.sh --write` writes the golden files. HELM names the helm binary; no cluster is needed.
set -euo pipefail
cd "$(dirname "$0")"
helm=${HELM:-helm}
# The release's address in the world: fixed, so that the output is.
release=(berth berth --namespace berth-system --kube-version 1.36.3 --api-versions premlabs.io/v1alpha1/AIDeployment)

"$helm" lint --quiet --strict --kube-version 1.36.3 berth berth-crds

for bad in nodes.mode=maybe nvml.access=root labels.nfd=yes labels.devicePluginConfig=plugin-config placement.onNoFit=Stay controller.replicas=0 'labeler.allowKeys={kubernetes.io/}' \
  "labeler.allowKeys={a.io/b' || true}" image.tag=a/b extraArgs=x \
  aiDeployment.engineImages.generic.tag=x aiDeployment.engineImages.vllm.tag=a:b aiDeployment.engineImages.vllm.repository=host:5000 \
  'aiDeployment.gpuTolerations[0].effect=Never' agent.extra=1 agent.podMonitor.interval=often runtimeClass.create=maybe modelDeployment.images.tritn=x modelDeployment.maxReplicas=0 \
  health.taint=some health.breaker.maxSharePercent=0 nodes.conditions.extra.Ready=auto nodes.conditions.extra.Mine=yes; do
  if "$helm" template "${release[@]}" --set "$bad" >/dev/null 2>&1; then
    echo "the chart takes $bad, which values.schema.json should refuse" >&2
    exit 1
  fi
done
if "$helm" template berth berth --kube-version 1.32.0 >/dev/null 2>&1; then
  echo "the chart installs on Kubernetes 1.32, which is outside its window" >&2
  exit 1
fi

out=$(mktemp -d)
trap 'rm -r "$out"' EXIT
"$helm" template "${release[@]}" >"$out/default.yaml"
for values in berth/ci/*-values.yaml; do
  name=$(basename "$values" -values.yaml)
  # diff says 1 for "they differ", as they must.
  "$helm" template "${release[@]}" --values "$values" |
    diff -U2 --label default --label "$name" "$out/default.yaml" - >"$out/$name.diff" && exit 1
done
if [[ ${1:-} == --write ]]; then
  mkdir -p golden
  rm -f golden/*
  cp "$out"/* golden/
elif ! diff -ru golden "$out"; then
  echo "the charts render to something else than deploy/charts/golden; if that is meant: deploy/charts/check.sh --write" >&2
  exit 1
fi
