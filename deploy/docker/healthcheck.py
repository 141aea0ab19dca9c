"""What HEALTHCHECK asks: 0 when the gateway of these settings takes requests. The images have no curl."""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

TIMEOUT_S = 4
OK = 200
# Where it listens to everybody, it is asked on loopback.
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def connection() -> HTTPConnection:
    host = os.environ.get("GATEWAY_HOST", "")
    host = LOOPBACK.get(host, host)
    port = int(os.environ.get("GATEWAY_PORT") or 8000)
    if not os.environ.get("GATEWAY_TLS_CERT"):
        return HTTPConnection(host, port, timeout=TIMEOUT_S)
    # Its certificate is for the name callers use, not for this address.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)


def main() -> int:
    try:
        asked = connection()
        asked.request("GET", "/health/ready")
        return 0 if asked.getresponse().status == OK else 1
    except (OSError, HTTPException):
        return 1


if __name__ == "__main__":
    sys.exit(main())
