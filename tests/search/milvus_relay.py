"""Runs a Milvus server in the network of its own that this process was started in, and relays a Unix socket to it.

Milvus listens on all addresses. In a network of its own it has none but loopback, where nobody else is; files are
shared, so that a Unix socket leads in. `python milvus_relay.py FOLDER SOCKET` prints `ready` and the server's process;
the server ends with this process, or as soon as this one's standard input is closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
import threading
from pathlib import Path

PORT = 19530


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up_and_running = struct.pack("16sh", b"lo", 0x1 | 0x40)
        fcntl.ioctl(any_socket, 0x8914, up_and_running)  # SIOCSIFFLAGS


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def relay(listener: socket.socket) -> None:
    while True:
        inner, _ = listener.accept()
        try:
            outer = socket.create_connection(("127.0.0.1", PORT))
        except OSError:
            inner.close()
            continue
        for ends in ((inner, outer), (outer, inner)):
            threading.Thread(target=pump, args=ends, daemon=True).start()


def main(folder: Path, path: str) -> None:
    from milvus import MilvusServer, MilvusServerConfig

    raise_loopback()
    server = MilvusServer(MilvusServerConfig(), wait_for_started=True)
    server.set_base_dir(str(folder))
    server.start()
    try:
        assert server.server_proc is not None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            threading.Thread(target=relay, args=(listener,), daemon=True).start()
            print("ready", server.server_proc.pid, flush=True)
            sys.stdin.read()
    finally:
        server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    os._exit(0)
