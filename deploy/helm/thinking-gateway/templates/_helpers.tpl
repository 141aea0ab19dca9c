{{- define "gateway.name" -}}
{{- .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "gateway.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "gateway.selector" -}}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The gateway's Pods, and not those of the Job or the test. */}}
{{- define "gateway.podSelector" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "gateway.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.device) }}
{{- end -}}
{{- end -}}

{{- define "gateway.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "gateway.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "gateway.cacheClaim" -}}
{{ .Values.cache.existingClaim | default (printf "%s-cache" (include "gateway.fullname" .)) }}
{{- end -}}

{{- define "gateway.stateClaim" -}}
{{ .Values.state.existingClaim | default (printf "%s-state" (include "gateway.fullname" .)) }}
{{- end -}}

{{/* "true" where the cache's claim is mounted by one node at a time; else nothing. */}}
{{- define "gateway.oneNode" -}}
{{- if and .Values.cache.persistent (not (has "ReadWriteMany" .Values.cache.accessModes)) -}}true{{- end -}}
{{- end -}}

{{/* A Pod of another node would wait for such a claim until the upgrade's time is up. */}}
{{- define "gateway.strategy" -}}
{{- .Values.strategy | default (ternary "Recreate" "RollingUpdate" (or .Values.state.persistent (eq (include "gateway.oneNode" .) "true"))) -}}
{{- end -}}

{{/* The Job and the gateway have the cache at once: where one node can, both are there. */}}
{{- define "gateway.affinity" -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- if and .Values.prePull.enabled (include "gateway.oneNode" .) -}}
{{- $both := dict "key" "app.kubernetes.io/component" "operator" "In" "values" (list "gateway" "pull") -}}
{{- $selector := dict "matchLabels" (include "gateway.selector" . | fromYaml) "matchExpressions" (list $both) -}}
{{- $beside := $affinity.podAffinity | default dict -}}
{{- $terms := append ($beside.requiredDuringSchedulingIgnoredDuringExecution | default list) (dict "topologyKey" "kubernetes.io/hostname" "labelSelector" $selector) -}}
{{- $_ := set $beside "requiredDuringSchedulingIgnoredDuringExecution" $terms -}}
{{- $_ := set $affinity "podAffinity" $beside -}}
{{- end -}}
{{- toYaml $affinity -}}
{{- end -}}

{{/* Where its Pods may run: the Job that fills their cache must get to the same nodes. */}}
{{- define "gateway.placement" -}}
{{- $place := dict -}}
{{- if and (eq .Values.device "gpu") .Values.gpu.runtimeClassName -}}
{{- $_ := set $place "runtimeClassName" .Values.gpu.runtimeClassName -}}
{{- end -}}
{{- $tolerations := .Values.tolerations -}}
{{- if eq .Values.device "gpu" -}}
{{- $tolerations = prepend $tolerations (dict "key" .Values.gpu.resource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- range $name, $value := dict "nodeSelector" .Values.nodeSelector "affinity" (include "gateway.affinity" . | fromYaml) "tolerations" $tolerations -}}
{{- if $value -}}{{- $_ := set $place $name $value -}}{{- end -}}
{{- end -}}
{{- if $place -}}{{- toYaml $place -}}{{- end -}}
{{- end -}}

{{/* What the public listener speaks. */}}
{{- define "gateway.scheme" -}}
{{- ternary "https" "http" (ne (default "" .Values.settings.GATEWAY_TLS_CERT) "") -}}
{{- end -}}

{{/* The port of a collector of traces, as its URL says or means. */}}
{{- define "gateway.tracePort" -}}
{{- with .Values.settings.GATEWAY_TRACE_ENDPOINT -}}
{{- $url := urlParse . -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}
{{- end -}}

{{/* How many replicas there may be. */}}
{{- define "gateway.most" -}}
{{- if eq .Values.autoscaling.kind "none" -}}{{ .Values.replicas }}{{- else -}}{{ .Values.autoscaling.maxReplicas }}{{- end -}}
{{- end -}}

{{/* What cannot work is refused here, with the sentence that says what to do. */}}
{{- define "gateway.check" -}}
{{- $most := int (include "gateway.most" .) -}}
{{- if not (or .Values.auth.keysSecret .Values.auth.apiKey.secret) -}}
{{- fail "no key is set: name a Secret in auth.keysSecret or auth.apiKey.secret; kubectl create secret generic gateway-key --from-literal=api-key=$(openssl rand -hex 32) makes one" -}}
{{- end -}}
{{- if and .Values.auth.adminKey.secret (not .Values.auth.keysSecret) -}}
{{- fail "auth.adminKey is one of the keys file: name its Secret in auth.keysSecret; without a keys file auth.apiKey is the admin key, too" -}}
{{- end -}}
{{- if and .Values.state.persistent (gt $most 1) -}}
{{- fail "state.persistent is one SQLite file for one Pod: with more replicas set usage.secret to a PostgreSQL URL, ship the audit log elsewhere, and leave state.persistent off" -}}
{{- end -}}
{{- if and .Values.state.persistent (eq .Values.strategy "RollingUpdate") -}}
{{- fail "state.persistent lets one Pod write: set strategy to Recreate" -}}
{{- end -}}
{{- if and (include "gateway.oneNode" .) (gt $most 1) -}}
{{- fail "several replicas share cache: set cache.accessModes to [ReadWriteMany] (it says what the claim can, also that of cache.existingClaim), or set cache.persistent to false" -}}
{{- end -}}
{{- if and (include "gateway.oneNode" .) (eq .Values.strategy "RollingUpdate") -}}
{{- fail "strategy RollingUpdate starts the new Pod beside the old one, and the cache's claim is mounted by one node at a time: set cache.accessModes to [ReadWriteMany], or strategy to Recreate" -}}
{{- end -}}
{{- if .Values.prePull.enabled -}}
{{- if not .Values.cache.persistent }}{{ fail "prePull fills the cache's claim: set cache.persistent" }}{{ end -}}
{{- if not (or .Values.prePull.hub .Values.prePull.build) }}{{ fail "prePull.enabled needs prePull.hub or prePull.build: what it fetches" }}{{ end -}}
{{- if has "ReadWriteOncePod" .Values.cache.accessModes }}{{ fail "prePull and the gateway have the cache at once: no ReadWriteOncePod in cache.accessModes" }}{{ end -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.kind "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is over autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.enabled needs ingress.host" -}}
{{- end -}}
{{- if and .Values.metrics.prometheusRule.enabled (not (or .Values.metrics.serviceMonitor.enabled .Values.metrics.prometheusRule.scrapedElsewhere)) -}}
{{- fail "metrics.prometheusRule without metrics.serviceMonitor: GatewayAbsent would page at once, since nothing is scraped as job=gateway; enable serviceMonitor, or set metrics.prometheusRule.scrapedElsewhere if a scrape of yours has that job name" -}}
{{- end -}}
{{- if and .Values.gatewayApi.enabled (not .Values.gatewayApi.parentRefs) -}}
{{- fail "gatewayApi.enabled needs gatewayApi.parentRefs: the Gateway to attach to" -}}
{{- end -}}
{{- end -}}

{{- define "gateway.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
# A cache of many files: do not chown it at every start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "gateway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities: {drop: [ALL]}
{{- end -}}
