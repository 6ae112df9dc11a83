{{- define "warmroute.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "warmroute.fullname" -}}
{{- $name := include "warmroute.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* The full name with an ending: `include "warmroute.named" (list $ "ops")`. */}}
{{- define "warmroute.named" -}}
{{- printf "%s-%s" (include "warmroute.fullname" (first .) | trunc 56 | trimSuffix "-") (last .) }}
{{- end }}

{{- define "warmroute.selector" -}}
app.kubernetes.io/name: {{ include "warmroute.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "warmroute.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "warmroute.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Labels of what Prometheus looks at: of the operators' Service, not of the data plane's. */}}
{{- define "warmroute.opsSelector" -}}
{{ include "warmroute.selector" . }}
app.kubernetes.io/component: ops
{{- end }}

{{- define "warmroute.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "warmroute.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "warmroute.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "warmroute.configMap" -}}
{{- default (include "warmroute.fullname" .) .Values.existingConfigMap }}
{{- end }}

{{- /* `discovery` of the values as the configuration spells it; nothing where it names no pods. */}}
{{- define "warmroute.kubernetes" -}}
{{- with .Values.discovery }}
{{- if or .selector .service .inferencePool }}
{{- $found := dict "events_port" .eventsPort "replay_port" .replayPort }}
{{- with .port }}{{ $_ := set $found "port" . }}{{ end }}
{{- with .selector }}{{ $_ := set $found "selector" . }}{{ end }}
{{- with .service }}{{ $_ := set $found "service" . }}{{ end }}
{{- with .inferencePool }}{{ $_ := set $found "inference_pool" . }}{{ end }}
{{- with .namespace }}{{ $_ := set $found "namespace" . }}{{ end }}
{{- with .deletionCost }}{{ $_ := set $found "deletion_cost" . }}{{ end }}
{{- toYaml $found }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The configuration file: `config`, and in it what other values say of pods, peers and warm-up. */}}
{{- define "warmroute.config" -}}
{{- $config := deepCopy .Values.config }}
{{- with include "warmroute.kubernetes" . | fromYaml }}
{{- $discovery := deepCopy (dig "discovery" dict $config) }}
{{- $_ := set $discovery "kubernetes" (mergeOverwrite . (deepCopy (dig "kubernetes" dict $discovery))) }}
{{- $_ := set $config "discovery" $discovery }}
{{- end }}
{{- if .Values.peers.enabled }}
{{- $dns := dict "name" (printf "%s.%s.svc" (include "warmroute.named" (list . "peers")) .Release.Namespace) "port" .Values.ports.ops }}
{{- $_ := set $config "peers" (mergeOverwrite (dict "dns" $dns) (deepCopy (dig "peers" dict $config))) }}
{{- end }}
{{- with .Values.warmup }}
{{- if .files }}
{{- $files := list }}
{{- range .files }}{{ $files = append $files (printf "/etc/warmroute-warmup/%s" .) }}{{ end }}
{{- $given := dict "files" $files "prefill_pods" .prefillPods }}
{{- with .delimiter }}{{ $_ := set $given "delimiter" . }}{{ end }}
{{- $_ := set $config "warmup" (mergeOverwrite $given (deepCopy (dig "warmup" dict $config))) }}
{{- end }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{- /* How many replicas there are where nothing scales them. */}}
{{- define "warmroute.replicas" -}}
{{- if kindIs "invalid" .Values.replicaCount }}2{{ else }}{{ .Values.replicaCount }}{{ end }}
{{- end }}

{{- /* Whether something else says how many replicas there are. */}}
{{- define "warmroute.scaled" -}}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled }}true{{ end }}
{{- end }}
