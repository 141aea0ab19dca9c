"""Ports of 127.0.0.1 that nobody listens at, and that the kernel gives to nobody else."""

import socket

# Bound for as long as this process lives. Linux draws no port that is bound like this for an outgoing
# connection, and a server may listen there if it sets SO_REUSEADDR, as all that tests start do.
HELD: list[socket.socket] = []


def free_port() -> int:
    (port,) = free_ports(1)
    return port


def free_ports(n: int) -> list[int]:
    """Different ones."""
    socks = [socket.socket() for _ in range(n)]
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
    HELD.extend(socks)
    return [sock.getsockname()[1] for sock in socks]
