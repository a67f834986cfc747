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
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details:
      - In check mode the server is asked for the size of a missing file, which is then not downloaded.
  diff_mode:
    support: full
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
    description: How long the server may stay silent.
    type: int
    default: 60
  lock_wait_seconds:
    description: How long to wait for another play that works on the same file, for a download that outlived its play.
    type: int
    default: 10
  progress_log:
    description: File on the host that is emptied at the start, and then gets a line of progress every two seconds.
    type: path
  manifest_dir:
    description: Directory of the manifests.
    type: path
    default: /var/lib/mixed_gpu/models
  host_python:
    description: Python interpreter with the C(requests) library, used when the module's own has no such library.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
requirements:
  - requests >= 2.32, for downloads only (the P(homelab.mixed_gpu.host_python#role) role installs it)
notes:
  - The unfinished file is O(path) with C(.part) added, and C(.part.json) tells what it is a part of.
  - A finished download with the wrong hash is kept as O(path) with C(.corrupt) added, and nothing is replaced. The
    next run uses it, if it has the hash that is asked for then, or removes it.
  - A file at O(path) that is not what was recorded of it is kept in the same way when the right one replaces it.
  - Certificate authorities are those of the system, or the bundle that the environment variable E(REQUESTS_CA_BUNDLE)
    names.
seealso:
  - module: homelab.mixed_gpu.gguf_info
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
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

import contextlib
import errno
import functools
import json
import os
import threading
import time
import typing as t
import urllib.parse

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import hub_api, model_files, transfer

PROGRESS_SECONDS = 2.0
WORTHWHILE_BYTES = 8 << 20               # an attempt that brought this much does not count as failed
NETWORK_CHUNK_BYTES = 1 << 16           # what a cut can lose at most: requests drops an unfinished chunk


class Progress:
    """Adds a line to the log every two seconds, also while nothing arrives."""

    def __init__(self, log: str | None) -> None:
        self._log = log
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._rate = transfer.Rate()
        self.what: str | None = None                     # a download has no name, to be short
        self.done, self.total = 0, 0
        if log:
            os.makedirs(os.path.dirname(os.path.abspath(log)), mode=0o755, exist_ok=True)
            with open(log, "w", encoding="utf-8"):
                pass
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def start(self, what: str | None, total: int | None, done: int = 0) -> None:
        """Begin to count something else."""
        self.what, self.total, self.done = what, total or 0, done
        self._rate = transfer.Rate()
        self._rate.add(time.monotonic(), done)

    def tick(self, done: int) -> None:
        """Say how far it is."""
        self.done = done

    def say(self, line: str) -> None:
        """Write one line."""
        if self._log:
            with open(self._log, "a", encoding="utf-8") as handle:
                handle.write(f"{line}\n")

    def _run(self) -> None:
        while not self._stop.wait(PROGRESS_SECONDS):
            if self.what is not None:
                rate = self._rate.add(time.monotonic(), self.done)
                self.say(transfer.progress_line(self.what, self.done, self.total, rate))

    def close(self) -> None:
        """Stop writing."""
        self._stop.set()
        if self._thread:
            self._thread.join()


def explain(exc: Exception, url: str) -> tuple[bool, str]:
    """Return whether another attempt may help, and one clause that says what went wrong and what to do."""
    import requests
    import urllib3

    host = urllib.parse.urlsplit(url).hostname
    causes: list[BaseException] = []
    pending: list[t.Any] = [exc]
    while pending:                                       # requests wraps urllib3, which wraps the socket's error
        cause = pending.pop()
        if isinstance(cause, BaseException) and cause not in causes:
            causes.append(cause)
            pending += [*cause.args, getattr(cause, "reason", None), cause.__cause__]

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    detail = str(causes[-1]).strip() or type(causes[-1]).__name__
    unresolved = getattr(urllib3.exceptions, "NameResolutionError", None)  # since urllib3 2
    if unresolved is not None and caused_by(unresolved):
        return True, f"the name {host} cannot be resolved: check the host's network, its DNS, and the URL"
    if isinstance(exc, requests.exceptions.ProxyError):
        return True, f"the proxy cannot be used ({detail}): check the proxy variables of the environment"
    if caused_by(requests.exceptions.SSLError, urllib3.exceptions.SSLError):
        return False, f"TLS with {host} failed ({detail}): check the host's clock and its CA certificates"
    if isinstance(exc, requests.exceptions.ConnectTimeout):
        return True, f"{host} does not answer: check the network, the firewall, and the URL"
    if isinstance(exc, requests.exceptions.Timeout) or caused_by(urllib3.exceptions.ReadTimeoutError):
        return True, f"{host} fell silent: run the play again to continue"
    if caused_by(urllib3.exceptions.NewConnectionError):
        return True, f"{host} cannot be reached ({detail}): check the network, and whether the server runs"
    if caused_by(urllib3.exceptions.ProtocolError, requests.exceptions.ConnectionError):
        return True, f"{host} closed the connection early: run the play again to continue"
    return False, f"the request failed ({detail}): check the URL"


def _authorise(token: str, request: t.Any) -> t.Any:
    """Add the token to a request, in the way of requests' auth functions: an entry in .netrc then does not."""
    request.headers["Authorization"] = f"Bearer {token}"
    return request


class File:
    """One file that shall be on the host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.path = os.path.abspath(self.params["path"])
        self.part, self.part_state = f"{self.path}.part", f"{self.path}.part.json"
        self.corrupt = f"{self.path}.corrupt"
        self.url, self.source = self.params["url"], self.params["source"]
        #: hash of the content that is wanted, and whether a hash comes from an index and not from somebody's keyboard
        self.wanted: str | None = self.params["sha256"] or self.params["git_sha1"]
        self.indexed = self.params["size_bytes"] is not None
        self.set_aside = self.fetched_again = False
        self.manifest_file = model_files.manifest_path(self.params["manifest_dir"], self.path)
        self.recorded = model_files.read_manifest(self.manifest_file, module.warn)
        self.progress = Progress(None if module.check_mode else self.params["progress_log"])
        self.result: dict[str, t.Any] = {
            "changed": False, "path": self.path, "present": True, "sha256": None, "size_bytes": None,
            "missing_bytes": 0, "free_bytes": self.free_bytes(), "resumed_bytes": 0, "attempts": 0, "hashed": False,
            "filesystem": model_files.filesystem(self.path),
        }

    def fail(self, message: str) -> t.NoReturn:
        """End with one sentence."""
        self.progress.say("failed")
        self.progress.close()
        self.module.fail_json(msg=message)
        raise AssertionError                             # for the type checker: fail_json does not return

    def free_bytes(self) -> int:
        """Return what may be written to the file's filesystem. A corrupt file counts as free: a download removes it."""
        corrupt = os.path.getsize(self.corrupt) if self.url and os.path.isfile(self.corrupt) else 0
        return max(0, model_files.free_space(self.path)[1] + corrupt - (self.params["reserve_mib"] << 20))

    def hash(self, path: str) -> transfer.Digest:
        """Return the hashes of a file, with progress."""
        self.progress.start("checking SHA-256", os.path.getsize(path))
        self.result["hashed"] = True
        digest = model_files.digest(path, bool(self.params["git_sha1"]), self.progress.tick)
        self.progress.start(None, 0)
        return digest

    def ensure(self) -> None:
        """Do what is to be done, and fill in the result."""
        wanted = self.wanted
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            self.fail(f"{self.path} is there and is no file: remove it, or choose another path.")
        if os.path.exists(self.path):
            believed = model_files.believed(self.recorded, self.path, bool(self.params["git_sha1"]))
            if believed is None and self.params["verify"] == "recorded":
                self.result.update(size_bytes=os.path.getsize(self.path))
                return
            digest = believed if believed and self.params["verify"] != "full" else self.hash(self.path)
            damaged = believed is not None and digest != believed
            if believed and damaged and believed.meets(wanted) and not (self.url or self.source):
                self.fail(
                    f"{self.path} is damaged: its SHA-256 was {believed.sha256} and is {digest.sha256}, though its "
                    "size and time are unchanged: check the disk, and put the file there again."
                )
            if wanted is None and self.source:
                wanted = self.hash_of_source()
            if digest.meets(wanted):
                self.result.update(sha256=digest.sha256, size_bytes=os.path.getsize(self.path))
                if digest != believed:
                    self.record(digest)
                    if self.url and not self.module.check_mode:
                        self.forget_part()               # of a play that was killed before it could record
                return
            if not self.url and not self.source:
                self.fail(
                    f"{self.path} has the SHA-256 {digest.sha256}, and {wanted} was expected: "
                    "put the right file there, or correct the sha256."
                )
            # what is here by our own doing is replaced; anything else might be the only copy
            self.set_aside = damaged or believed is None
            if self.set_aside and self.url:
                state = "is damaged" if damaged else "is not the file that is asked for, and not from here"
                self.module.warn(f"{self.path} {state} (its SHA-256 is {digest.sha256}): it is fetched again, and the "
                                 f"file that was there is kept as {self.corrupt}.")  # fmt: skip
            self.diff({"path": self.path, "sha256": digest.sha256}, wanted)
        elif not self.url and not self.source:
            if not self.params["missing_ok"]:
                self.fail(f"{self.path} does not exist: put the file there, or give a url to download it from.")
            self.result.update(present=False, sha256=self.params["sha256"])
            return
        else:
            self.diff({}, wanted)
        self.result.update(changed=True, present=not self.module.check_mode, sha256=self.params["sha256"])
        if self.url:
            self.download(wanted or "")
        else:
            self.copy(wanted)

    def diff(self, before: dict[str, t.Any], wanted: str | None) -> None:
        """Tell what changes."""
        self.result["diff"] = {"before": before, "after": {"path": self.path, "sha256": wanted}}

    def record(self, digest: transfer.Digest) -> None:
        """Write the manifest of the file that is at its place."""
        self.result["changed"] = True
        if self.module.check_mode:
            return
        kind = "url" if self.url else "copy" if self.source else "local"
        source = {"kind": kind, "from": transfer.shown_url(self.url) if self.url else self.source or self.path}
        model_files.write_manifest(self.manifest_file, self.path, digest, source, self.module.atomic_move)

    def need(self, n_bytes: int, what: str) -> None:
        """Fail before the first byte unless there is room."""
        free = self.free_bytes()
        if n_bytes > free:
            directory = model_files.free_space(self.path)[0]
            self.fail(
                f"{directory} has {transfer.size_text(free)} free (beyond the reserve of {self.params['reserve_mib']} "
                f"MiB), and {what} needs {transfer.size_text(n_bytes)}: free some space, or choose another directory."
            )

    def publish(self, wanted: str | None, origin: str) -> bool:
        """Check what was written and put it in its place in one step. False: it was wrong, and is worth another try."""
        digest = self.hash(self.part)
        if not digest.meets(wanted):
            os.replace(self.part, self.corrupt)
            self.forget_part()
            found = f"SHA-256 {digest.sha256}" if self.params["sha256"] else f"git SHA-1 {digest.git_sha1}"
            said = f"{origin} has the {found}, and {wanted} was expected"
            if self.url and self.indexed and not self.fetched_again:
                self.fetched_again = True
                self.module.warn(f"{said}: what came is kept as {self.corrupt}, and the file is fetched again.")
                return False
            again = " twice" if self.fetched_again else ""
            cure = "the server or the way to it is at fault; run the play again later, or use another mirror"
            if not self.indexed:
                cure = "correct the sha256, or find the right file"
            self.fail(f"{said}{again}: nothing was replaced, and what came is kept as {self.corrupt}; {cure}.")
        if self.set_aside and os.path.exists(self.path):
            self.keep_old()
        model_files.publish(self.part, self.path, self.module.atomic_move)
        self.forget_part()
        self.record(digest)
        size_bytes = os.path.getsize(self.path)
        self.result.update(sha256=digest.sha256, size_bytes=size_bytes)
        self.progress.say(f"complete, {transfer.size_text(size_bytes)}")
        return True

    def keep_old(self) -> None:
        """Give the file that is to be replaced a second name, so that there is a file at its place all the time."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.corrupt)
        try:
            os.link(self.path, self.corrupt)
        except OSError:                                  # a filesystem without hard links
            os.replace(self.path, self.corrupt)

    # ---- local files -------------------------------------------------------------------------------------------------

    def hash_of_source(self) -> str | None:
        """Return the SHA-256 of the file to copy, which decides whether the copy is current."""
        if not os.path.isfile(self.source):
            self.fail(f"{self.source} cannot be copied, since it is no file: correct the source.")
        return self.hash(self.source).sha256

    def copy(self, wanted: str | None) -> None:
        """Copy the source beside its place, check it, publish it."""
        if not os.path.isfile(self.source):
            self.fail(f"{self.source} cannot be copied, since it is no file: correct the source.")
        size_bytes = os.path.getsize(self.source)
        self.result.update(size_bytes=size_bytes, missing_bytes=size_bytes)
        self.need(size_bytes, self.path)
        if self.module.check_mode:
            return
        self.copy_bytes(self.source)
        self.publish(wanted, self.source)

    def copy_bytes(self, source: str) -> None:
        """Copy a file to the unfinished file."""
        self.progress.start("copying", os.path.getsize(source))
        model_files.make_parents(self.path)
        done = 0
        with open(source, "rb") as reader, open(self.part, "wb") as writer:
            while chunk := reader.read(model_files.CHUNK_BYTES):
                writer.write(chunk)
                done += len(chunk)
                self.progress.tick(done)

    def brought(self, wanted: str) -> str | None:
        """Return a file of source_dir with the wanted content, or None."""
        if not os.path.isdir(self.params["source_dir"]):
            self.fail(f"{self.params['source_dir']} is no directory: mount it, or correct the source_dir.")
        for path in model_files.candidates(self.params["source_dir"], self.path, self.params["size_bytes"]):
            self.progress.say(f"looking at {path}")
            if self.hash(path).meets(wanted):
                return path
        return None

    # ---- downloads ---------------------------------------------------------------------------------------------------

    def forget_part(self) -> None:
        """Remove the unfinished file and what is known about it."""
        for path in (self.part, self.part_state):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def resumable(self, wanted: str) -> tuple[int, dict[str, t.Any]]:
        """Return the size of an unfinished file that may be continued, and what is known about it."""
        state: dict[str, t.Any] = {}
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(json_file.read_text(self.part_state) or "{}")
        if os.path.isfile(self.part) and transfer.can_resume(state, wanted):
            return os.path.getsize(self.part), state
        return 0, {}

    def session(self) -> t.Any:
        """Return an HTTP session: no compression (ranges count stored bytes), the system's certificate authorities."""
        import requests

        session = requests.Session()
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": "homelab.mixed_gpu"})
        if os.path.exists(transfer.SYSTEM_CA_BUNDLE):
            session.verify = transfer.SYSTEM_CA_BUNDLE
        token = self.token()
        if token:
            # requests drops this header where a redirect leads to another host, as the hub's do
            session.auth = functools.partial(_authorise, token)
        return session

    def token(self) -> str | None:
        """Return the access token, where there is one."""
        try:
            return model_files.read_token(self.params["token_file"], self.url)
        except hub_api.HubError as exc:
            self.fail(str(exc))

    def download(self, wanted: str) -> None:
        """Take the file from source_dir, or download it."""
        name = transfer.shown_url(self.url)
        if self.params["source_dir"] and not self.module.check_mode:
            found = self.brought(wanted)
            if found:
                self.need(os.path.getsize(found), self.path)
                self.copy_bytes(found)
                if self.publish(wanted, found):
                    return
        if self.indexed:
            missing = self.params["size_bytes"] - self.resumable(wanted)[0]
            self.result.update(size_bytes=self.params["size_bytes"], missing_bytes=max(0, missing))
            if self.module.check_mode:
                return
        reason = host_python.enter(["requests"], self.params["host_python"])
        if reason and self.module.check_mode:
            self.result["missing_bytes"] = None
            self.module.warn(f"The size of {name} is unknown: {reason}")
            return
        if reason:
            self.fail(f"{name} cannot be downloaded: {reason}")
        if os.path.isfile(self.corrupt) and not self.module.check_mode:
            if self.hash(self.corrupt).meets(wanted):        # the file was right, and the sha256 is corrected now
                os.replace(self.corrupt, self.part)
                self.publish(wanted, name)
                return
            os.unlink(self.corrupt)
        while not self.transfer_parts(wanted, name):
            pass

    def transfer_parts(self, wanted: str, name: str) -> bool:
        """Download in as many attempts as make sense, continuing where the last one stopped; then publish()."""
        import requests

        session = self.session()
        self.result["resumed_bytes"] = self.resumable(wanted)[0]
        self.progress.say(f"asking {urllib.parse.urlsplit(self.url).hostname}")
        silent = self.params["timeout_seconds"]
        failures, discarded, furthest, restarted = 0, 0, self.result["resumed_bytes"], False
        while True:
            offset, state = self.resumable(wanted)
            self.result["attempts"] += 1
            retry_after = None
            try:
                with session.get(
                    self.url, stream=True, timeout=(min(15, silent), silent),
                    headers=transfer.range_headers(self.url, offset, state),
                ) as response:
                    answer = transfer.judge_answer(
                        self.url, response.status_code, response.headers, offset, state.get("total_bytes"),
                        session.auth is not None,
                    )  # fmt: skip
                    answer = transfer.judge_size(answer, name, self.params["size_bytes"])
                    retry_after = response.headers.get("Retry-After")
                    if answer.action == "write":
                        if offset > answer.offset:
                            restarted = True
                            self.progress.say("the server does not continue, beginning again")
                        self.receive(response, answer, wanted)
                failure, again = answer.reason, answer.action == "retry"
            except requests.exceptions.RequestException as exc:
                again, clause = explain(exc, self.url)
                failure = f"{name} cannot be downloaded: {clause}"
                answer = transfer.Answer("retry" if again else "refuse", reason=f"{failure}.")
            if answer.action in ("write", "complete"):
                if self.module.check_mode:
                    return True
                break
            if answer.action == "discard" and not discarded:
                discarded += 1
                self.forget_part()
                continue
            if answer.action == "refuse":
                self.fail(answer.reason)
            kept = self.resumable(wanted)[0]
            if kept >= furthest + WORTHWHILE_BYTES:
                failures, furthest = 1, kept
            else:
                failures += 1
            if failures >= self.params["attempts"] or not again:
                tail = ""
                if restarted:
                    tail = "; the server cannot continue a cut transfer and began again each time"
                elif kept and not self.module.check_mode:
                    tail = f"; {transfer.size_text(kept)} are kept for the next run"
                self.fail(f"{failure} ({self.result['attempts']} attempts{tail}).")
            pause = transfer.wait_seconds(failures, self.params["retry_seconds"], retry_after)
            self.progress.start(None, 0)
            self.progress.say(f"next attempt in {transfer.duration_text(pause)}: {failure}")
            time.sleep(pause)
        return self.publish(wanted, name)

    def receive(self, response: t.Any, answer: transfer.Answer, wanted: str) -> None:
        """Write the body of a response to the unfinished file. Raises what requests raises."""
        kept = os.path.getsize(self.part) if os.path.isfile(self.part) else 0
        total = answer.total
        self.result["size_bytes"] = total
        if self.result["missing_bytes"] == 0:
            self.result["missing_bytes"] = None if total is None else total - answer.offset
        if total is not None:
            room = total - answer.offset
            # what is thrown away because the server begins again makes room, too
            self.need(max(0, room - (kept - answer.offset)), transfer.shown_url(self.url))
        if self.module.check_mode:
            return
        if answer.offset == 0:
            self.result["resumed_bytes"] = 0
        model_files.make_parents(self.path)
        state = transfer.part_state(self.url, wanted, response.headers, total)
        if answer.offset == 0:
            self.forget_part()                           # never a state that speaks of older bytes
        json_file.write_text(self.part_state, json_file.to_text(state), 0o644, self.module.atomic_move)
        done = answer.offset
        self.progress.start("", total, done)
        with open(self.part, "ab") as writer:
            for chunk in response.iter_content(NETWORK_CHUNK_BYTES):
                writer.write(chunk)
                done += len(chunk)
                self.progress.tick(done)
            writer.flush()
            os.fsync(writer.fileno())
        # urllib3 before 2 says nothing of a connection that was cut
        if total is not None and done < total:
            import requests

            raise requests.exceptions.ConnectionError(f"the connection ended after {done} of {total} bytes")


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
        },
        mutually_exclusive=[("url", "source"), ("sha256", "git_sha1")],
        supports_check_mode=True,
    )
    try:
        if module.params["url"]:
            transfer.check_url(module.params["url"])
            if not (module.params["sha256"] or module.params["git_sha1"]):
                raise transfer.DownloadError(f"{module.params['path']} has a url and no sha256: add it.")
        if module.params["sha256"]:
            module.params["sha256"] = transfer.check_sha256(module.params["sha256"], module.params["path"])
    except transfer.DownloadError as exc:
        module.fail_json(msg=str(exc))
    path = os.path.abspath(module.params["path"])
    if module.params["url"] and not module.check_mode:
        # before the lock, which this process keeps while another does its work; download() says it when this failed
        host_python.enter(["requests"], module.params["host_python"])
    lock = None
    file = None
    try:
        if not module.check_mode:
            lock_file = f"{model_files.manifest_path(module.params['manifest_dir'], path)}.lock"
            lock = json_file.take_lock(lock_file, module.params["lock_wait_seconds"])
            if lock is None:
                module.fail_json(
                    msg=f"Another play is working on {path}: wait until it has ended, then run this one again."
                )
        file = File(module)
        file.ensure()
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "check the directory"
        if full:
            cure = "the disk is full: free some space, then run the play again to continue"
        module.fail_json(msg=f"{path} cannot be put in place ({exc.strerror or exc}), {cure}.")
    finally:
        if file is not None:
            file.progress.close()
        if lock is not None:
            json_file.release_lock(lock)
    module.exit_json(**file.result)


if __name__ == "__main__":
    main()
