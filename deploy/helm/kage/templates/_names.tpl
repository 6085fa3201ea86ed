{{/* Names and labels that more than one manifest uses. */}}

{{- define "kage.name" -}}
{{- if contains "kage" .Release.Name }}{{ .Release.Name | trunc 32 | trimSuffix "-" }}{{ else }}{{ printf "%s-kage" .Release.Name | trunc 32 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "kage.selector" -}}
app.kubernetes.io/name: kage
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kage.labels" -}}
{{ include "kage.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* HOST:PORT where agents join. */}}
{{- define "kage.coordinator" -}}
{{- if .Values.agents.coordinator }}{{ .Values.agents.coordinator }}{{ else }}{{ include "kage.name" . }}-coordinator:{{ .Values.coordinator.port }}{{ end -}}
{{- end }}

{{- define "kage.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kage.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
