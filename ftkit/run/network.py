"""Which network of this machine leads to the others. Imports no torch."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_READ_ADDRESS = 0x8915
"""Linux: the request for the IPv4 address of an interface (SIOCGIFADDR)."""


def choose_interface(host: str, port: int) -> None:
    """Lets Gloo speak through the interface that leads to `host`, unless the environment names one.

    Left to itself it takes the one that this machine's own name stands for, which often is reached from this machine alone.
    """
    if GLOO_INTERFACE not in os.environ and (name := interface_to(host, port)):
        os.environ[GLOO_INTERFACE] = name


def interface_to(host: str, port: int) -> str:
    """The name of the interface from which `host` is reached; empty where it cannot be found out (IPv6, other systems than Linux)."""
    with suppress(OSError, ImportError):
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            # Connecting a datagram socket sends nothing; it looks up the way.
            asking.connect((host, port))
            own = asking.getsockname()[0]
            for _, name in socket.if_nameindex():
                with suppress(OSError):
                    found = fcntl.ioctl(asking.fileno(), _READ_ADDRESS, struct.pack("256s", name.encode()[:15]))
                    if socket.inet_ntoa(found[20:24]) == own:
                        return name
    return ""
