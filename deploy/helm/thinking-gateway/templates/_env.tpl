{{/* Environment that comes from Secrets. */}}
{{- define "gateway.secretEnv" -}}
{{- range $name, $from := dict "GATEWAY_API_KEY" .Values.auth.apiKey "GATEWAY_ADMIN_KEY" .Values.auth.adminKey "GATEWAY_REDIS_URL" .Values.redis "GATEWAY_USAGE_URL" .Values.usage }}
{{- if $from.secret }}
- name: {{ $name }}
  valueFrom: {secretKeyRef: {name: {{ $from.secret }}, key: {{ $from.key }}}}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
