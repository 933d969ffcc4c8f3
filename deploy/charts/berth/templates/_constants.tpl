{{- /* Written by `cargo xtask gen` from crds/src/access.rs; edit that. Each renders to a CEL literal. */ -}}
{{- define "berth.cel.protectedDomains" -}}['kubernetes.io', 'k8s.io', 'berth.dev', 'nvidia.com', 'amd.com', 'gpu.intel.com', 'cloud.google.com', 'gke.io', 'kubernetes.azure.com', 'azure.com', 'amazonaws.com', 'aws.amazon.com', 'eks.amazonaws.com', 'k8s.aws', 'digitalocean.com', 'oraclecloud.com', 'ibm.com', 'alibabacloud.com', 'coreweave.com', 'coreweave.cloud', 'karpenter.sh', 'karpenter.azure.com', 'x-k8s.io']{{- end -}}
{{- define "berth.cel.hardwareKeyPrefixes" -}}['nvidia.com/', 'amd.com/gpu', 'amd.com/compute-', 'amd.com/memory-partitioning-supported', 'beta.amd.com/gpu', 'gpu.intel.com/', 'feature.node.kubernetes.io/pci-', 'berth.dev/gpu']{{- end -}}
{{- define "berth.cel.unhealthyTaint" -}}'berth.dev/gpu-unhealthy'{{- end -}}
{{- define "berth.cel.taintEffect" -}}'NoSchedule'{{- end -}}
{{- define "berth.cel.nodeConditions" -}}['nvidia.com/GPUReady', 'amd.com/GPUReady']{{- end -}}
{{- define "berth.cel.gate" -}}'berth.dev/placement'{{- end -}}
{{- define "berth.cel.domain" -}}'berth.dev/'{{- end -}}
{{- define "berth.cel.leaderLabel" -}}'berth.dev/leader'{{- end -}}
