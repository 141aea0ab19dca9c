#!/usr/bin/env bash
# Brings what is derived up to date: the chart's copies of monitoring/, and the manifests of deploy/kubernetes.
# `make deploy-render` runs it; tests/deploy/lint/test_derived.py holds that nothing is behind.
#   render.sh [ROOT]    ROOT: where to write, the repository by default
set -euo pipefail
cd "$(dirname "$0")/.."
root=${1:-.}
chart=deploy/helm/thinking-gateway
mkdir -p "$root/$chart/files/dashboards" "$root/deploy/kubernetes"
cp monitoring/rules.yml monitoring/alerts.yml "$root/$chart/files/"
cp monitoring/grafana/dashboards/*.json "$root/$chart/files/dashboards/"
{
    echo "# Rendered by deploy/render.sh from the chart with $chart/ci/plain.yaml; change those, not this."
    helm template gateway "$chart" --namespace thinking-gateway --skip-tests --values "$chart/ci/plain.yaml"
} >"$root/deploy/kubernetes/thinking-gateway.yaml"
