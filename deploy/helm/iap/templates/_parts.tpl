{{/* What the three servers share. Each takes a dict: root, part (auth, proxy, agent). */}}

{{- define "iap.name" -}}
{{ .root.Release.Name }}-{{ .part }}
{{- end }}

{{- define "iap.selector" -}}
app.kubernetes.io/name: iap-{{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "iap.labels" -}}
{{ include "iap.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "iap.image" -}}
{{ .root.Values.image.registry }}/iap-{{ .part }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Nobody's user, nothing to write but the state, no capability, no way to get one. The group is the pod's own: secrets
     that Kubernetes hands over belong to root and to it. */}}
{{- define "iap.pod-security" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
# Otherwise each start would open the keys on the volume to the group, and the server would refuse them.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "iap.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "iap.mounts" -}}
- { name: config, mountPath: /etc/iap/config.toml, subPath: config.toml, readOnly: true }
- { name: state, mountPath: /var/lib/iap }
{{- end }}

{{- define "iap.readiness" -}}
readinessProbe:
  exec: { command: [/usr/bin/iap, ready, --config, /etc/iap/config.toml] }
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{- define "iap.claim" -}}
- metadata: { name: state }
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .className }}
    storageClassName: {{ . }}
    {{- end }}
    resources: { requests: { storage: {{ .size }} } }
{{- end }}

{{/* A host joins once; its identity stays on its volume. */}}
{{- define "iap.join" -}}
initContainers:
  - name: join
    image: {{ include "iap.image" . }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: {{ concat (list "join" "--unless-joined" "--config" "/etc/iap/config.toml" "--token-file" "/etc/iap/join/token") .arguments | toJson }}
    securityContext: {{- include "iap.container-security" . | nindent 6 }}
    volumeMounts:
      {{- include "iap.mounts" . | nindent 6 }}
      - { name: join, mountPath: /etc/iap/join, readOnly: true }
{{- end }}
