{{- /* What both kinds of workload run: metadata and spec of a pod. */}}
{{- define "warmroute.pod" -}}
metadata:
  labels:
    {{- include "warmroute.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- if not .Values.existingConfigMap }}
    checksum/config: {{ include "warmroute.config" . | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "warmroute.serviceAccount" . }}
  automountServiceAccountToken: {{ not (empty (dig "discovery" "kubernetes" dict (include "warmroute.config" . | fromYaml))) }}
  enableServiceLinks: false
  {{- /* The delay, the streams, and a margin to log and exit. */}}
  terminationGracePeriodSeconds: {{ default (add .Values.drain.delaySeconds .Values.drain.timeoutSeconds 15) .Values.terminationGracePeriodSeconds }}
  {{- with .Values.podSecurityContext }}
  securityContext: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if or .Values.tokenizers.copyFrom.image .Values.initContainers }}
  initContainers:
    {{- if .Values.tokenizers.copyFrom.image }}
    - name: tokenizers
      image: {{ .Values.tokenizers.copyFrom.image | quote }}
      command: [cp, -r, "{{ .Values.tokenizers.copyFrom.path }}/.", /tokenizers]
      {{- with .Values.securityContext }}
      securityContext: {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - {name: tokenizers, mountPath: /tokenizers}
    {{- end }}
    {{- with .Values.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: warmroute
      image: {{ include "warmroute.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        - --config
        - /etc/warmroute/warmroute.yaml
        {{- with .Values.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env: {{- include "warmroute.env" . | nindent 8 }}
      {{- with .Values.envFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: http, containerPort: {{ .Values.ports.data }}, protocol: TCP}
        - {name: ops, containerPort: {{ .Values.ports.ops }}, protocol: TCP}
        {{- if and .Values.peers.enabled .Values.peers.existingSecret }}
        - {name: peers, containerPort: {{ .Values.ports.ops }}, protocol: UDP}
        {{- end }}
        {{- if .Values.ports.events }}
        {{- range $rank := until (int .Values.ports.eventRanks) }}
        - {name: events-{{ $rank }}, containerPort: {{ add $.Values.ports.events $rank }}, protocol: TCP}
        {{- end }}
        {{- end }}
      {{- $scheme := ternary "HTTPS" "HTTP" (not (empty .Values.tls.existingSecret)) }}
      {{- $alive := dict "httpGet" (dict "path" "/healthz" "port" "http" "scheme" $scheme) }}
      {{- $ready := dict "httpGet" (dict "path" "/readyz" "port" "http" "scheme" $scheme) }}
      startupProbe: {{- include "warmroute.probe" (list (merge (dict "periodSeconds" 1 "failureThreshold" 120) $alive) .Values.startupProbe) | nindent 8 }}
      livenessProbe: {{- include "warmroute.probe" (list (merge (dict "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 3) $alive) .Values.livenessProbe) | nindent 8 }}
      readinessProbe: {{- include "warmroute.probe" (list (merge (dict "periodSeconds" 2 "timeoutSeconds" 2 "failureThreshold" 2) $ready) .Values.readinessProbe) | nindent 8 }}
      lifecycle:
        {{- if .Values.lifecycle }}
        {{- toYaml .Values.lifecycle | nindent 8 }}
        {{- else }}
        preStop:
          exec: {command: [python, -c, "import time; time.sleep({{ .Values.drain.delaySeconds }})"]}
        {{- end }}
      {{- with .Values.securityContext }}
      securityContext: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.resources }}
      resources: {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts: {{- include "warmroute.mounts" . | nindent 8 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes: {{- include "warmroute.volumes" . | nindent 4 }}
  {{- with .Values.topologySpread }}
  {{- if .enabled }}
  topologySpreadConstraints:
    - maxSkew: {{ .maxSkew }}
      topologyKey: {{ .topologyKey }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "warmroute.selector" $ | nindent 10 }}
  {{- end }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* A probe: the chart's own, and over it what the values say; another way to ask takes the place of the chart's. */}}
{{- define "warmroute.probe" -}}
{{- $own := first . }}
{{- range $way := list "exec" "tcpSocket" "grpc" }}{{ if hasKey (last $) $way }}{{ $own = omit $own "httpGet" }}{{ end }}{{ end }}
{{- toYaml (mergeOverwrite (deepCopy $own) (deepCopy (last .))) }}
{{- end }}

{{- /* What the configuration file does not hold. */}}
{{- define "warmroute.env" -}}
- {name: WARMROUTE_GATEWAY__PORT, value: {{ .Values.ports.data | quote }}}
- {name: WARMROUTE_GATEWAY__OPS_PORT, value: {{ .Values.ports.ops | quote }}}
- {name: WARMROUTE_GATEWAY__DRAIN_TIMEOUT, value: "{{ .Values.drain.timeoutSeconds }}s"}
{{- if .Values.ports.events }}
- {name: WARMROUTE_EVENTS__BIND, value: "tcp://*:{{ .Values.ports.events }}"}
{{- end }}
{{- if .Values.operatorKey.existingSecret }}
- {name: WARMROUTE_GATEWAY__OPERATOR_KEY_FILE, value: /etc/warmroute-key/operator-key}
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- {name: WARMROUTE_GATEWAY__API_KEYS_FILE, value: /etc/warmroute-api-keys/api-keys}
{{- end }}
{{- if .Values.podKey.existingSecret }}
- {name: WARMROUTE_PODS__API_KEY_FILE, value: /etc/warmroute-pod-key/api-key}
{{- end }}
{{- if .Values.state.enabled }}
- {name: WARMROUTE_STATE__PATH, value: /var/lib/warmroute/state}
{{- end }}
{{- if and .Values.peers.enabled .Values.peers.existingSecret }}
- {name: WARMROUTE_PEERS__KEY_FILE, value: /etc/warmroute-peers-key/peers-key}
{{- end }}
{{- with .Values.redis }}
{{- if .existingSecret }}
- name: WARMROUTE_INDEX__REDIS__URL
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- with .Values.tls }}
{{- if .existingSecret }}
- {name: WARMROUTE_GATEWAY__TLS__CERT_FILE, value: /etc/warmroute-tls/{{ .cert }}}
- {name: WARMROUTE_GATEWAY__TLS__KEY_FILE, value: /etc/warmroute-tls/{{ .key }}}
{{- end }}
{{- end }}
{{- with .Values.podTls }}
{{- if .existingSecret }}
{{- if .ca }}
- {name: WARMROUTE_UPSTREAM__TLS__CA_FILE, value: /etc/warmroute-pod-tls/{{ .ca }}}
{{- end }}
{{- if .cert }}
- {name: WARMROUTE_UPSTREAM__TLS__CERT_FILE, value: /etc/warmroute-pod-tls/{{ .cert }}}
{{- end }}
{{- if .key }}
- {name: WARMROUTE_UPSTREAM__TLS__KEY_FILE, value: /etc/warmroute-pod-tls/{{ .key }}}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "warmroute.mounts" -}}
- {name: config, mountPath: /etc/warmroute, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .Values.operatorKey.existingSecret }}
- {name: operator-key, mountPath: /etc/warmroute-key, readOnly: true}
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- {name: api-keys, mountPath: /etc/warmroute-api-keys, readOnly: true}
{{- end }}
{{- if .Values.podKey.existingSecret }}
- {name: pod-key, mountPath: /etc/warmroute-pod-key, readOnly: true}
{{- end }}
{{- if and .Values.peers.enabled .Values.peers.existingSecret }}
- {name: peers-key, mountPath: /etc/warmroute-peers-key, readOnly: true}
{{- end }}
{{- if .Values.state.enabled }}
- {name: state, mountPath: /var/lib/warmroute}
{{- end }}
{{- if .Values.warmup.existingConfigMap }}
- {name: warmup, mountPath: /etc/warmroute-warmup, readOnly: true}
{{- end }}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /etc/warmroute-tls, readOnly: true}
{{- end }}
{{- if .Values.podTls.existingSecret }}
- {name: pod-tls, mountPath: /etc/warmroute-pod-tls, readOnly: true}
{{- end }}
{{- if or .Values.tokenizers.volume .Values.tokenizers.copyFrom.image }}
- {name: tokenizers, mountPath: {{ .Values.tokenizers.mountPath }}, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* One item of a Secret as a file: `list NAME SECRET KEY FILE`. */}}
{{- define "warmroute.secretFile" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
    items: [{key: {{ index . 2 }}, path: {{ index . 3 }}}]
{{- end }}

{{- define "warmroute.volumes" -}}
- name: config
  configMap: {name: {{ include "warmroute.configMap" . }}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with .Values.operatorKey }}
{{- if .existingSecret }}
{{ include "warmroute.secretFile" (list "operator-key" .existingSecret .key "operator-key") }}
{{- end }}
{{- end }}
{{- with .Values.apiKeys }}
{{- if .existingSecret }}
{{ include "warmroute.secretFile" (list "api-keys" .existingSecret .key "api-keys") }}
{{- end }}
{{- end }}
{{- with .Values.podKey }}
{{- if .existingSecret }}
{{ include "warmroute.secretFile" (list "pod-key" .existingSecret .key "api-key") }}
{{- end }}
{{- end }}
{{- with .Values.peers }}
{{- if and .enabled .existingSecret }}
{{ include "warmroute.secretFile" (list "peers-key" .existingSecret .key "peers-key") }}
{{- end }}
{{- end }}
{{- if and .Values.state.enabled (not .Values.state.persistence.enabled) }}
- name: state
  emptyDir: {sizeLimit: {{ .Values.state.sizeLimit }}}
{{- end }}
{{- if .Values.warmup.existingConfigMap }}
- name: warmup
  configMap: {name: {{ .Values.warmup.existingConfigMap }}}
{{- end }}
{{- with .Values.tls }}
{{- if .existingSecret }}
- name: tls
  secret: {secretName: {{ .existingSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- with .Values.podTls }}
{{- if .existingSecret }}
- name: pod-tls
  secret: {secretName: {{ .existingSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- if .Values.tokenizers.volume }}
- name: tokenizers
  {{- toYaml .Values.tokenizers.volume | nindent 2 }}
{{- else if .Values.tokenizers.copyFrom.image }}
- name: tokenizers
  emptyDir: {}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
