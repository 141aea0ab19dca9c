#!/usr/bin/env bash
# Installs the systemd service from a repository at /opt/thinking-gateway where `make install` (or install-gpu) was
# run, looks at machine, GPU and settings, starts it, and waits until it is ready. Run it again after a change: the
# service is started anew; settings that are there stay.
#   sudo deploy/start_service.sh            DESTDIR=/somewhere: write the files there and start nothing
set -euo pipefail
cd "$(dirname "$0")/.."
root=${DESTDIR:-}
unit=$root/etc/systemd/system/thinking-gateway.service
settings=$root/etc/thinking-gateway/gateway.env

if [ -z "$root" ]; then
    [ "$(id -u)" = 0 ] || { echo "run it as root: sudo deploy/start_service.sh"; exit 1; }
    command -v systemctl >/dev/null || { echo "there is no systemd here; see deploy/README.md for containers"; exit 1; }
    [ "$PWD" = /opt/thinking-gateway ] || { echo "the service runs from /opt/thinking-gateway: move the repository there"; exit 1; }
    [ -x .venv/bin/gateway ] || { echo "there is no .venv/bin/gateway: run make install first"; exit 1; }
    id thinking-gateway >/dev/null 2>&1 ||
        useradd --system --home-dir /var/lib/thinking-gateway --shell /usr/sbin/nologin thinking-gateway
fi
install -D -m 0644 deploy/systemd/thinking-gateway.service "$unit"
if [ ! -e "$settings" ]; then
    install -d -m 0750 "$(dirname "$settings")"
    (umask 077 && printf 'GATEWAY_API_KEY=%s\nGATEWAY_PROFILES=demo\n' "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" >"$settings")
    echo "made $settings with a key of its own"
fi
[ -z "$root" ] || exit 0
deploy/systemd/restart.sh "$settings"
