#!/usr/bin/env bash
# Runs the tests of this folder on podman; inside isolated.sh, so that nothing of it can stay:
#   test.sh FOLDER TOOLS PYTHON
set -euo pipefail
cd "$(dirname "$0")/../../.."
export DEPLOY_FOLDER=$1 DEPLOY_TOOLS=$2
source tests/deploy/image/settings.sh "$1"
"$3" -m pytest tests/deploy/image
