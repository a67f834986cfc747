#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: model_file
short_description: Put one large file on a host, once, and know its SHA-256
version_added: 0.1.0
description:
  - Downloads a file, copies one that is already on the host, or takes in one where it lies.
  - A download that was cut is continued. The file appears at O(path) only when its SHA-256 is right, and replaces what
    was there in one step.
  - A manifest of the file's SHA-256, size, modification time and inode makes the next run quick.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._host_python
  - homelab.mixed_gpu._model_files
attributes:
  check_mode:
    details: In check mode the server is asked for the size of a missing file, which is then not downloaded.
options:
  path:
    description:
      - The file on the host.
      - Without O(url) and O(source) it must be there already.
    type: path
    required: true
  url:
    description: Where to download the file, by http or https. Requires O(sha256) or O(git_sha1).
    type: str
  source:
    description: A file on the host to copy.
    type: path
  sha256:
    description: SHA-256 that the file must have.
    type: str
  git_sha1:
    description: SHA-1 that the file must have as a blob of git, for files of which no SHA-256 is known.
    type: str
  size_bytes:
    description:
      - Size that the download must have. With it no server is asked in check mode, and a download with a wrong hash is
        fetched once more in the same run.
    type: int
  source_dir:
    description:
      - Directory on the host to search for the file before it is downloaded. What has its hash is copied, whatever its
        name.
    type: path
  token_file:
    description: File on the host with an access token, which is sent to the host of O(url) alone. May be missing.
    type: path
  verify:
    description:
      - With V(manifest) the SHA-256 of a file that has not changed since it was recorded is believed.
      - With V(full) the file is read and hashed in any case. One that is damaged is downloaded again if there is an
        O(url).
      - With V(recorded) a file is never read, only looked up; RV(sha256=none) when it was never recorded or has changed
        since. For a look at what a later task has to do, in check mode.
    type: str
    choices: [manifest, full, recorded]
    default: manifest
  missing_ok:
    description:
      - Without O(url) and O(source), whether a missing file is an answer (RV(present=false)) instead of a failure.
    type: bool
    default: false
  reserve_mib:
    description: MiB to leave free on the filesystem.
    type: int
    default: 256
  attempts:
    description: How many attempts in a row may bring nothing, or next to nothing, before the download is given up.
    type: int
    default: 5
  retry_seconds:
    description: Pause before the second attempt. It doubles with every further one, up to 30 seconds.
    type: float
    default: 1
  timeout_seconds:
    description: How long the server may stay silent, or send less than 1 KiB per second.
    type: int
    default: 60
  lock_wait_seconds:
    description: How long to wait for another play that works on the same file, for a download that outlived its play.
    type: int
    default: 10
  progress_log:
    description: File on the host that is emptied at the start, and then gets a line of progress every two seconds.
    type: path
requirements:
  - requests >= 2.32, for downloads only (the P(homelab.mixed_gpu.host_python#role) role installs it)
notes:
  - The unfinished file is O(path) with C(.part) added, and C(.part.json) tells what it is a part of.
  - A finished download with the wrong hash is kept as O(path) with C(.corrupt) added, and nothing is replaced. The
    next run uses it, if it has the hash that is asked for then, or removes it.
  - A file at O(path) that is damaged is kept in the same way when the right one replaces it. One that was not put there
    by this module is kept as O(path) with C(.replaced) added, and never removed.
  - Certificate authorities are those of the system, or the bundle that the environment variable E(REQUESTS_CA_BUNDLE)
    names.
seealso:
  - module: homelab.mixed_gpu.gguf_info
"""

EXAMPLES = r"""
- name: Download a model
  homelab.mixed_gpu.model_file:
    path: /var/lib/llm_models/example/example.gguf
    url: https://models.example/example.gguf
    sha256: 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

- name: Take in a file where it lies
  homelab.mixed_gpu.model_file:
    path: /srv/models/example.gguf

- name: Read the whole file again to see whether it is still intact
  homelab.mixed_gpu.model_file:
    path: /srv/models/example.gguf
    verify: full
  check_mode: true
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
present:
  description: Whether the file is there now, as asked for.
  returned: success
  type: bool
sha256:
  description: SHA-256 of the file at RV(path), or that it will have. V(none) when that is unknown.
  returned: success
  type: str
size_bytes:
  description: Size of the file, or that it will have. V(none) when unknown.
  returned: success
  type: int
missing_bytes:
  description: Bytes that were still to be downloaded or copied. V(0) when nothing was, V(none) when unknown.
  returned: success
  type: int
free_bytes:
  description: Bytes that were free on the file's filesystem at the start, less O(reserve_mib).
  returned: success
  type: int
filesystem:
  description: Where the file's filesystem is mounted.
  returned: success
  type: str
resumed_bytes:
  description: Bytes that were there from an earlier, unfinished download.
  returned: success
  type: int
attempts:
  description: Number of requests that a download took.
  returned: success
  type: int
hashed:
  description: Whether the file had to be read to know its SHA-256.
  returned: success
  type: bool
"""

import errno
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import file_names, manifest, transfer
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models.placed_file import PlacedFile


def check_options(params: dict[str, t.Any]) -> None:
    """Raise UserError for options that do not go together; the SHA-256 is in lower case afterwards."""
    if any(ord(character) < 32 for character in params["path"]):
        raise UserError(f"The path {params['path']!r} has a control character: correct it.")
    if params["url"]:
        transfer.check_url(params["url"])
        if not (params["sha256"] or params["git_sha1"]):
            raise UserError(f"{params['path']} has a url and no sha256: add it.")
    file_names.check_size(params["size_bytes"], params["path"])
    if params["sha256"]:
        params["sha256"] = transfer.check_sha256(params["sha256"], params["path"])


def ensure(module: AnsibleModule, path: str) -> dict[str, t.Any]:
    """Put the file in place while holding its lock, and return the result. Raises UserError, UserError, OSError."""
    lock = None
    if not module.check_mode:
        lock_file = f"{manifest.manifest_path(module.params['manifest_dir'], path)}.lock"
        lock = json_file.take_lock(lock_file, module.params["lock_wait_seconds"])
        if lock is None:
            raise UserError(
                f"Another play is working on {path}: wait until it has ended, then run this one again."
            )
    file = None
    try:
        file = PlacedFile(module, module.params)
        return file.ensure()
    except UserError:
        if file is not None:
            file.progress.say("failed")
        raise
    finally:
        if file is not None:
            file.progress.close()
        if lock is not None:
            json_file.release_lock(lock)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "url": {"type": "str"},
            "source": {"type": "path"},
            "sha256": {"type": "str"},
            "git_sha1": {"type": "str"},
            "size_bytes": {"type": "int"},
            "source_dir": {"type": "path"},
            "token_file": {"type": "path", "no_log": False},
            "verify": {"type": "str", "choices": ["manifest", "full", "recorded"], "default": "manifest"},
            "missing_ok": {"type": "bool", "default": False},
            "reserve_mib": {"type": "int", "default": 256},
            "attempts": {"type": "int", "default": 5},
            "retry_seconds": {"type": "float", "default": 1},
            "timeout_seconds": {"type": "int", "default": 60},
            "lock_wait_seconds": {"type": "int", "default": 10},
            "progress_log": {"type": "path"},
            "manifest_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "trusted_owners": {"type": "list", "elements": "str", "default": []},
        },
        mutually_exclusive=[("url", "source"), ("sha256", "git_sha1")],
        supports_check_mode=True,
    )
    path = os.path.abspath(module.params["path"])
    try:
        check_options(module.params)
        if module.params["url"] and not module.check_mode:
            # before the lock, which this process keeps while another does its work; download() says it when this failed
            host_python.enter(["requests"], module.params["host_python"])
        module.exit_json(**ensure(module, path))
    except UserError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "check the directory"
        if full:
            cure = "the disk is full: free some space, then run the play again to continue"
        module.fail_json(msg=f"{path} cannot be put in place ({exc.strerror or exc}), {cure}.")


if __name__ == "__main__":
    main()
