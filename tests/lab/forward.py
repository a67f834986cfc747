"""A TCP forward for lab.sh: one process listens on 127.0.0.1, one short-lived process per connection reaches the host.

forward.py listen PORT -- COMMAND...   run COMMAND for each connection, with the connection as its standard input
forward.py connect PORT                copy between standard input (a socket) and 127.0.0.1:PORT, until both sides close
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import typing as t


def listen(port: int, command: t.Sequence[str]) -> t.NoReturn:
    """Accept connections on 127.0.0.1:port for ever; a port in use ends the process with one sentence."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("127.0.0.1", port))
    except OSError as exc:
        sys.exit(f"port {port} on 127.0.0.1 cannot be used ({exc.strerror}): free it or choose another")
    server.listen(16)
    print("listening", flush=True)
    children: list[subprocess.Popen[bytes]] = []
    while True:
        connection, _address = server.accept()
        children = [child for child in children if child.poll() is None]
        children.append(subprocess.Popen(command, stdin=connection.fileno()))
        connection.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def connect(port: int) -> None:
    """Serve one connection, which is this process's standard input."""
    near = socket.socket(fileno=0)
    far = socket.create_connection(("127.0.0.1", port), timeout=10)
    far.settimeout(None)
    back = threading.Thread(target=_copy, args=(far, near))
    back.start()
    _copy(near, far)
    back.join()


if __name__ == "__main__":
    if sys.argv[1:2] == ["listen"] and sys.argv[3:4] == ["--"]:
        listen(int(sys.argv[2]), sys.argv[4:])
    elif sys.argv[1:2] == ["connect"]:
        connect(int(sys.argv[2]))
    else:
        sys.exit(__doc__)
