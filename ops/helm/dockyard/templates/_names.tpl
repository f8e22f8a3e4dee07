{{- define "dockyard.name" -}}
{{- if contains "dockyard" .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-dockyard" .Release.Name }}{{ end }}
{{- end }}

{{- define "dockyard.selector" -}}
app.kubernetes.io/name: dockyard
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dockyard.balancerSelector" -}}
app.kubernetes.io/name: dockyard-balancer
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dockyard.labels" -}}
app.kubernetes.io/part-of: dockyard
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "dockyard.config.settings" -}}
{{- $config := deepCopy .Values.config }}
{{- $storage := merge (dict "directory" "/var/cache/dockyard") (default (dict) $config.storage) }}
{{- toYaml (set $config "storage" $storage) }}
{{- end }}
