{{- /* Names of objects are fixed, not made from the release's: node labels, policies and roles exist once in a cluster, and so does Berth. */ -}}

{{- /* Labels that pods are selected by. Arguments: (list . component). */ -}}
{{- define "berth.selector" -}}
app.kubernetes.io/name: berth
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* Labels of a pod. */ -}}
{{- define "berth.podLabels" -}}
{{ include "berth.selector" . }}
app.kubernetes.io/part-of: berth
{{- end -}}

{{- /* Labels of an object. */ -}}
{{- define "berth.labels" -}}
{{- $top := index . 0 -}}
{{ include "berth.podLabels" . }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ $top.Chart.Name }}-{{ $top.Chart.Version }}
{{- end -}}

{{- define "berth.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{ .Values.image.repository }}{{ if hasPrefix "sha256:" $tag }}@{{ else }}:{{ end }}{{ $tag }}
{{- end -}}

{{- /* What the restricted pod security standard asks of a container, and a read-only root. */ -}}
{{- define "berth.restricted" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- end -}}

{{- /* User of every container but the privileged probe. */ -}}
{{- define "berth.user" -}}65532{{- end -}}

{{- /* The controller as the API server knows it. */ -}}
{{- define "berth.username" -}}system:serviceaccount:{{ .Release.Namespace }}:berth-controller{{- end -}}

{{- /* Environment of the controller's binary, whichever command it runs. */ -}}
{{- define "berth.controllerEnv" -}}
- name: BERTH_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: BERTH_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: RUST_LOG
  value: {{ .Values.logFilter | quote }}
{{- end -}}

{{- /* Who may read metrics. */ -}}
{{- define "berth.metricsFrom" -}}
- podSelector: {}
{{- with .Values.networkPolicy.metricsFrom }}
{{ toYaml . }}
{{- end }}
{{- end -}}
