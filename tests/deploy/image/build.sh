#!/usr/bin/env bash
# Builds the real Dockerfile.cpu with buildah, in a storage of its own:
#   build.sh FOLDER [WHEELS]
# There may be no image registry here, so the base is a stand-in: Debian's own Python 3.11 (debootstrap) under the
# name that the Dockerfile's FROM asks for. The same base with Debian's Redis, Prometheus and Alertmanager stands in for
# their images.
# FOLDER keeps storage and layers; WHEELS is a folder whose wheels go into the build's deploy/docker/wheels.
set -euo pipefail
cd "$(dirname "$0")/../../.."
folder=$1 wheels=${2:-}
for command in buildah podman runc conmon debootstrap iptables ip /usr/lib/podman/netavark /usr/lib/podman/aardvark-dns; do
    command -v "$command" >/dev/null || { echo "$command is missing: apt-get install --no-install-recommends" \
        buildah podman runc conmon netavark aardvark-dns iptables iproute2 debootstrap; exit 1; }
done
source tests/deploy/image/settings.sh "$folder"

have() { buildah images --quiet "localhost/$1" >/dev/null 2>&1; }

base() {
    local mirror tree
    mirror=$(awk '/^URIs/{print $2;exit}' /etc/apt/sources.list.d/debian.sources)
    tree=$(mktemp -d -p "$folder")
    debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm "$tree" "$mirror" \
        >"$folder/debootstrap.log" || { tail "$folder/debootstrap.log"; exit 1; }
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$tree/" / >/dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet --rm "$container" "localhost/$BASE_IMAGE" >/dev/null
    rm -rf "$tree"
}

# As the image that it stands in for: its folder and who owns it; wget is what Compose's health checks call.
stand_in() { # IMAGE PACKAGE FOLDER USER:GROUP [PROGRAM]
    have "$1" && return
    echo "making the stand-in for $1"
    container=$(buildah from --pull-never "localhost/$BASE_IMAGE")
    buildah run --isolation chroot "$container" -- sh -c 'apt-get -qq update &&
        printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d && # start nothing
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$0" wget >/dev/null &&
        rm -rf /var/lib/apt/lists/* &&
        install -d "$1" && chown "$2" "$1"' "$2" "$3" "$4"
    buildah config --workingdir "$3" --user "$4" "$container"
    [ $# -lt 5 ] || buildah config --entrypoint "[\"$5\"]" "$container"
    buildah commit --quiet --rm "$container" "localhost/$1" >/dev/null
}

# What a clean clone has, and the wheels.
context() {
    rm -rf "$folder/context"
    mkdir -p "$folder/context"
    git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c \
        'for file; do [ ! -e "$file" ] || cp --parents -d "$file" "$0"; done' "$folder/context"
    [ -z "$wheels" ] || cp "$wheels"/*.whl "$folder/context/deploy/docker/wheels/"
}

have "$BASE_IMAGE" || { echo "making the stand-in base"; base; }
stand_in "$REDIS_IMAGE" redis-server /data 999:1000
stand_in "$PROMETHEUS_IMAGE" prometheus /prometheus 65534:65534 /usr/bin/prometheus
stand_in "$ALERTMANAGER_IMAGE" prometheus-alertmanager /alertmanager 65534:65534 /usr/bin/prometheus-alertmanager
context
# The machine's certificates, for a mirror that has its own.
buildah bud --layers --format docker --pull-never --isolation chroot --quiet \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro --file deploy/docker/Dockerfile.cpu \
    --build-arg REVISION="$(git rev-parse HEAD)" --tag "localhost/$GATEWAY_IMAGE" "$folder/context"
rm -rf "$folder/context"
