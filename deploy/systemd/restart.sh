#!/usr/bin/env bash
# Looks at machine, GPU and settings, starts the service anew and waits until it is ready: start_service.sh's last step.
#   restart.sh SETTINGS    WAIT_S: how long (1800; a first start fetches and builds). PYTHON: the installation's.
set -euo pipefail
cd "$(dirname "$0")/../.."
settings=$1
service=thinking-gateway
python=$PWD/.venv/bin/python
python=${PYTHON:-$python}

give_up() {
    echo "$1; the end of its log:" >&2
    journalctl --unit "$service" --lines 20 --no-pager >&2
    exit 1
}
value() { sed -n "s/^$1=//p" "$settings" | tail -n 1 | tr -d "\"'"; }
ready() {
    GATEWAY_HOST=$(value GATEWAY_HOST) GATEWAY_PORT=$(value GATEWAY_PORT) \
        GATEWAY_TLS_CERT=$(value GATEWAY_TLS_CERT) "$python" deploy/docker/healthcheck.py
}

if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total,temperature.gpu --format=csv ||
        echo "nvidia-smi fails: the driver is not well"
else
    echo "no NVIDIA driver: engines run on the CPU"
fi
# As systemd will run it: its user, folders and settings.
systemd-run --quiet --wait --pipe --collect --property=User=$service --property=Group=$service \
    --property=StateDirectory=$service --property=CacheDirectory=$service \
    --property=WorkingDirectory=/var/lib/$service --property="EnvironmentFile=$settings" \
    --setenv=HOME=/var/lib/$service --setenv=XDG_CACHE_HOME=/var/cache/$service \
    --setenv=GATEWAY_STATE_DIR=/var/lib/$service "$python" -m gateway doctor || {
    echo "nothing was started: mend what fails above" >&2
    exit 1
}
systemctl daemon-reload
systemctl enable "$service"
systemctl restart "$service"
echo "started; waiting until it is ready: journalctl -fu $service shows more"
deadline=$((SECONDS + ${WAIT_S:-1800}))
while true; do
    answers=no
    ready && answers=yes
    # Asked last: whoever answers is not ours if ours has ended.
    systemctl is-active --quiet "$service" || give_up "it ended at its start"
    [ "$answers" = no ] || break
    [ "$SECONDS" -lt "$deadline" ] || give_up "it is not ready within ${WAIT_S:-1800} s"
    sleep 1
done
echo "ready"
