# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fingerprints of OpenPGP keys, so that a key can be pinned without gpg. Private to this collection. Pure functions
only.
"""

from __future__ import annotations

import base64
import hashlib
import re
import typing as t


class OpenPGPError(ValueError):
    """Data that is no OpenPGP key; the message is one sentence without its end."""


def _binary(data: bytes) -> bytes:
    """Return the packets of an armored or a binary key."""
    if not data.lstrip().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return data
    blocks = re.findall(
        rb"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP PUBLIC KEY BLOCK-----", data, re.DOTALL
    )
    packets = b""
    for block in blocks:
        # headers end with an empty line; the last line may be a checksum
        body = re.split(rb"\r?\n[ \t]*\r?\n", block, maxsplit=1)[-1]
        lines = [line.strip() for line in body.splitlines() if line.strip() and not line.startswith(b"=")]
        try:
            packets += base64.b64decode(b"".join(lines), validate=True)
        except ValueError as exc:
            raise OpenPGPError("it looks like an armored key, but is not base64") from exc
    return packets


def _packets(data: bytes) -> t.Iterator[tuple[int, bytes]]:
    """Yield (tag, body) of each packet. Source: RFC 4880 section 4.2."""
    at = 0
    while at < len(data):
        header = data[at]
        if not header & 0x80:
            raise OpenPGPError("it is no OpenPGP key")
        at += 1
        try:
            if header & 0x40:
                tag, first = header & 0x3F, data[at]
                if first < 192:
                    length, at = first, at + 1
                elif first < 224:
                    length, at = ((first - 192) << 8) + data[at + 1] + 192, at + 2
                elif first == 255:
                    length, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
                else:
                    raise OpenPGPError("it has packets of unknown length, which no key has")
            else:
                tag, size = (header >> 2) & 0x0F, header & 0x03
                if size == 3:
                    raise OpenPGPError("it has packets of unknown length, which no key has")
                length, at = int.from_bytes(data[at : at + (1 << size)], "big"), at + (1 << size)
        except IndexError as exc:
            raise OpenPGPError("it ends in the middle of a packet") from exc
        if at + length > len(data):
            raise OpenPGPError("it ends in the middle of a packet")
        yield tag, data[at : at + length]
        at += length


def fingerprints(data: bytes) -> list[str]:
    """Return the fingerprints (40 upper-case hexadecimal digits) of all primary keys in a file, armored or not.

    Source: RFC 4880 section 12.2: SHA-1 of 0x99, the length in two bytes, and the packet's body, for keys of version 4.
    Raises OpenPGPError.
    """
    found = []
    for tag, body in _packets(_binary(data)):
        if tag == 6:
            if body[:1] != b"\x04":
                raise OpenPGPError(f"it has a key of version {body[0] if body else 0}, and only version 4 is known")
            digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
            found.append(digest.hexdigest().upper())
    if not found:
        raise OpenPGPError("it holds no OpenPGP public key")
    return found
