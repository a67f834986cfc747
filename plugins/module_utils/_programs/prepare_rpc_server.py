# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs before ggml-rpc-server, in its unit: proves the address filter, and bounds the cache of weights.

The role llama_rpc copies this file to the host. A timer runs it for all caches of the host, since they grow meanwhile.
It uses the standard library alone, and imports nothing of the collection. Where systemd cannot filter (a kernel without
BPF for control groups) it starts a unit without the filter and warns. Whoever reaches an RPC server can run code there,
so this program ends the start instead.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import typing as t

#: A unit that talks to its clients alone cannot send to the host itself; the discard port, should somebody listen.
DENIED: t.Final = ("127.0.0.1", 9)


def filtered() -> bool:
    """Return whether the kernel refuses a datagram from this process to an address that its unit does not allow."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(DENIED)
        try:
            sender.send(b"\n")
        except PermissionError:
            return True
        except ConnectionRefusedError:
            return False
    return False


def prune(folder: str, most_bytes: int) -> list[str]:
    """Remove the files of a cache that were not used for longest, until it holds C(most_bytes); return their paths.

    Its server may change it meanwhile: what is gone, or cannot be removed, is passed over.
    """
    found = []
    for path, _folders, files in os.walk(folder):
        for name in files:
            file = os.path.join(path, name)
            with contextlib.suppress(OSError):
                state = os.lstat(file)
                found.append((max(state.st_atime, state.st_mtime), file, state.st_size))
    removed, held = [], sum(size for _time, _file, size in found)
    for _time, file, size in sorted(found):
        if held <= most_bytes:
            break
        with contextlib.suppress(OSError):
            os.unlink(file)
            removed.append(file)
            held -= size
    return removed


def main(words: list[str] | None = None) -> int:
    """Return 0 where the server may start, 1 with a sentence where it must not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--filtered", action="store_true")
    parser.add_argument("--cache", default="", help="the cache of one server")
    parser.add_argument("--caches", default="", help="the folder of the caches of all servers")
    parser.add_argument("--most-gib", type=float, default=0.0)
    given = parser.parse_args(words)
    if given.filtered and not filtered():
        sys.stderr.write(
            "No start: systemd's address filter is not in effect here, so anybody in the network could run code through"
            " this server. The kernel needs CONFIG_CGROUP_BPF, and the unit needs IPAddressDeny=any.\n"
        )
        return 1
    folders = [given.cache] if given.cache else []
    folders += [entry.path for entry in os.scandir(given.caches)] if os.path.isdir(given.caches) else []
    for folder in folders:
        removed = prune(folder, int(given.most_gib * 2**30))
        if removed:
            sys.stdout.write(
                f"Removed {len(removed)} files of {folder}, to hold {given.most_gib:g} GiB of weights at most.\n"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
