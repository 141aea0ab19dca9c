# shellcheck shell=bash disable=SC2034,SC2016
# Sourced: where buildah and podman keep what they make, and how podman runs without systemd.
folder=$1
mkdir -p "$folder/tmp"
cat >"$folder/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$folder/storage"
runroot = "$folder/run"
END
cat >"$folder/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
compat_api_enforce_docker_hub = false
[network]
network_backend = "netavark"
END
export CONTAINERS_STORAGE_CONF="$folder/storage.conf" CONTAINERS_CONF="$folder/containers.conf" TMPDIR="$folder/tmp"
BASE_IMAGE=$(sed -n 's/^ARG BASE=//p' deploy/docker/Dockerfile.cpu)
REDIS_IMAGE=$(sed -n 's/^ *image: \(redis:.*\)/\1/p' deploy/compose/compose.yaml)
PROMETHEUS_IMAGE=$(sed -n 's/^ *image: \(prom\/prometheus:.*\)/\1/p' deploy/compose/compose.yaml)
ALERTMANAGER_IMAGE=$(sed -n 's/^ *image: \(prom\/alertmanager:.*\)/\1/p' deploy/compose/compose.yaml)
GATEWAY_IMAGE=$(sed -n 's/^ *image: ${IMAGE:-\(.*\)}/\1/p' deploy/compose/compose.yaml)
