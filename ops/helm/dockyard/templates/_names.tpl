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

{{- /* The TCP ports of HTTPS, of the upstreams, proxies and the S3 endpoint in the settings, and those of the values. */ -}}
{{- define "dockyard.egressPorts" -}}
{{- $ports := list 443 }}
{{- $storage := default (dict) .Values.config.storage }}
{{- with $storage.endpoint }}
{{- $scheme := ternary "https" "http" (eq (toString $storage.use_ssl) "true") }}
{{- $ports = append $ports (include "dockyard.port" (printf "%s://%s" $scheme .)) }}
{{- end }}
{{- range .Values.config.upstreams }}
{{- range compact (list .registry .proxy) }}
{{- $ports = append $ports (include "dockyard.port" .) }}
{{- end }}
{{- end }}
{{- range .Values.networkPolicy.ports }}
{{- $ports = append $ports . }}
{{- end }}
{{- $texts := list }}
{{- range $ports }}
{{- $texts = append $texts (toString .) }}
{{- end }}
{{- uniq $texts | join " " }}
{{- end }}

{{- define "dockyard.port" -}}
{{- $authority := regexReplaceAll "/.*$" (regexReplaceAll "^[a-z]+://" . "") "" }}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $authority) }}
{{- if $port }}{{ $port }}{{ else if hasPrefix "http://" . }}80{{ else }}443{{ end }}
{{- end }}
