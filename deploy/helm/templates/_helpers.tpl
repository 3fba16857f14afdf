{{/* Labels of every object; dict "root" $ "component" "node" adds the component. */}}
{{- define "modelmount.labels" -}}
app.kubernetes.io/name: {{ .root.Values.name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What selects the pods of a component; never changes. */}}
{{- define "modelmount.selector" -}}
app.kubernetes.io/name: {{ .root.Values.name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "modelmount.image" -}}
{{- with .Values.image }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* Whether the node pods have anything to do at the API server. */}}
{{- define "modelmount.nodeToken" -}}
{{ or .Values.events.enabled .Values.startupTaint.enabled .Values.pullSecrets.enabled .Values.capacity.enabled }}
{{- end }}

{{/* The kubelet's directory for the driver's socket. */}}
{{- define "modelmount.plugin" -}}
{{ .Values.kubeletRoot }}/plugins/{{ .Values.driverName }}
{{- end }}

{{/* The configuration file: what the admin says, and what follows from other values. */}}
{{- define "modelmount.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if ne .Values.store.path "/var/lib/modelmount" }}{{ $_ := set $config "root" .Values.store.path }}{{ end }}
{{- if ne .Values.driverName "csi.modelmount.io" }}{{ $_ := set $config "driver_name" .Values.driverName }}{{ end }}
{{- if ne .Values.kubeletRoot "/var/lib/kubelet" }}{{ $_ := set $config "kubelet_root" .Values.kubeletRoot }}{{ end }}
{{- if .Values.mirrors }}{{ $_ := set $config "hosts_dir" "/etc/modelmount/hosts" }}{{ end }}
{{- if .Values.nodeMirrors }}{{ $_ := set $config "hosts_dir" "/etc/modelmount-hosts" }}{{ end }}
{{- if .Values.policy }}{{ $_ := set $config "policy_file" "/etc/modelmount/policy/policy.toml" }}{{ end }}
{{- if .Values.registrySecret }}
{{- $_ := set $config "auth" (merge (dict "docker_config" "/etc/modelmount-registry/config.json") (default dict $config.auth)) }}
{{- end }}
{{- $kubernetes := dict }}
{{- if not .Values.events.enabled }}{{ $_ := set $kubernetes "events" false }}{{ end }}
{{- if .Values.startupTaint.enabled }}{{ $_ := set $kubernetes "startup_taint" .Values.startupTaint.key }}{{ end }}
{{- if .Values.pullSecrets.enabled }}{{ $_ := set $kubernetes "pull_secrets" true }}{{ end }}
{{- if .Values.capacity.enabled }}{{ $_ := set $kubernetes "capacity" true }}{{ end }}
{{- if $kubernetes }}{{ $_ := set $config "kubernetes" $kubernetes }}{{ end }}
{{- include "modelmount.toml" (dict "table" $config "path" list) | trim }}
{{- end }}

{{/* A table and those in it as TOML. toToml writes the numbers of a values file as floats, 5e+11. */}}
{{- define "modelmount.toml" -}}
{{- range $key, $value := .table }}
{{- if not (kindIs "map" $value) }}
{{ include "modelmount.key" $key }} = {{ if not (kindIs "float64" $value) }}{{ toJson $value }}{{ else if eq $value (floor $value) }}{{ printf "%.0f" $value }}{{ else }}{{ $value }}{{ end }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{- $path := append $.path (include "modelmount.key" $key) }}

[{{ join "." $path }}]
{{- include "modelmount.toml" (dict "table" $value "path" $path) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "modelmount.key" -}}
{{ regexMatch "^[A-Za-z0-9_-]+$" . | ternary . (toJson .) }}
{{- end }}

{{/* The files below /etc/modelmount, as a volume. */}}
{{- define "modelmount.configVolume" -}}
- name: config
  configMap:
    name: {{ .Values.name }}-config
{{- if or .Values.caBundles .Values.mirrors .Values.policy }}
    items:
      - key: config.toml
        path: config.toml
{{- range $name, $_ := .Values.caBundles }}
      - key: ca-{{ $name }}
        path: ca/{{ $name }}
{{- end }}
{{- range $host, $_ := .Values.mirrors }}
      - key: hosts-{{ $host | replace ":" "_" }}
        path: hosts/{{ $host }}/hosts.toml
{{- end }}
{{- range $name, $_ := .Values.policy }}
      - key: policy-{{ $name }}
        path: policy/{{ $name }}
{{- end }}
{{- end }}
{{- end }}

{{- define "modelmount.pullSecrets" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ .name }}
{{- end }}
{{- end }}
{{- end }}

{{/* A mistake that a schema cannot see. */}}
{{- define "modelmount.check" -}}
{{- if and .Values.mirrors .Values.nodeMirrors }}{{ fail "mirrors and nodeMirrors exclude each other: say one" }}{{ end }}
{{- if and .Values.policy (not (hasKey .Values.policy "policy.toml")) }}{{ fail "policy needs a file policy.toml, with the rules" }}{{ end }}
{{- if and .Values.policy .Values.config.policy_file }}{{ fail "policy and config.policy_file exclude each other: say one" }}{{ end }}
{{- end }}
