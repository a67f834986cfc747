# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One look-up of a repository's files at the hub: recorded answers first, then the hub itself (huggingface_hub).

Private to this collection. What an answer means is decided in hub_api.py.
"""

from __future__ import annotations

import os
import re
import stat
import time
import typing as t

from .._base import host_python, json_file
from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import file_names, hub_api, hub_session, retry_wait, transfer

#: Options that every module that asks the hub has; doc_fragments/_hub.py describes them.
ARGUMENTS: t.Final[dict[str, Json]] = {
    "repo": {"type": "str", "required": True},
    "revision": {"type": "str", "default": "main"},
    "quant": {"type": "str"},
    "endpoint": {"type": "str"},
    "token_file": {"type": "path", "no_log": False},
    "attempts": {"type": "int", "default": 5},
    "retry_seconds": {"type": "float", "default": 1},
    "timeout_seconds": {"type": "int", "default": 30},
    "host_python": {"type": "path", "default": host_python.DEFAULT},
}
#: How patiently the hub is asked, where nobody says.
PATIENCE: t.Final = {name: ARGUMENTS[name]["default"] for name in ("attempts", "retry_seconds", "timeout_seconds")}


def read_token(path: str | None, url: str) -> str | None:
    """Return the access token in a file, or None where there is none. Raises UserError when it cannot be used."""
    if not path or not os.path.exists(path):
        return None
    status = os.stat(path)
    if stat.S_ISFIFO(status.st_mode):           # nobody may ever write to it
        raise UserError(f"The token in {path} cannot be read (it is no file): name a file that holds the token.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise UserError(f"Others may read the token in {path}: chmod 600 {path}, and make a new token.")
    try:
        token = (json_file.read_text(path) or "").strip()
    except OSError as exc:
        raise UserError(
            f"The token in {path} cannot be read ({exc.strerror or exc}): run this as its owner, or name another file."
        ) from exc
    if not re.fullmatch(r"[!-~]*", token):
        raise UserError(
            f"The file {path} holds more than a token (a second word or line, or a character that no token has): write "
            "the token alone into it."
        )
    problem = hub_api.token_problem(url) if token else None
    if problem:
        raise UserError(f"{problem} ({path}).")
    return token or None


class HubLookup:
    """One question to the hub, and its answer."""

    #: Where a token is given, and what to do about a hub that cannot be reached.
    token_place: str = hub_api.TOKEN_PLACE
    unreachable_cure = (
        "check the network, set llm_models_hub_endpoint to a mirror, or bring files and records with"
        " llm_models_source_dir"
    )

    def __init__(self, module: t.Any, params: Mapping, say: t.Callable[[str], t.Any] = lambda line: None) -> None:
        """Take an AnsibleModule and the options of the module hub_files; ``say`` shows a line while it waits."""
        self.module, self.params, self.say = module, params, say
        self.endpoint = (self.params["endpoint"] or os.environ.get("HF_ENDPOINT") or hub_api.OFFICIAL).rstrip("/")
        self.asked = {key: self.params[key] for key in ("repo", "revision", "files", "quant")}
        self.name = hub_api.record_name(*self.asked.values())
        self.record_file = os.path.join(self.params["record_dir"], self.name)

    def answer(self) -> Json:
        """Return the module's result. Raises UserError."""
        self.check()
        known = hub_api.pinned(self.asked, self.params["sha256"], self.params["size_bytes"])
        if known:
            return self.result(known, "given")
        before = self.recorded(self.params["record_dir"])
        if before and not (self.params["update"] and self.params["ask"]):
            return self.result(before, "record")
        if not self.params["ask"]:
            reason = "it was never asked for; run the role llm_models"
            return {"changed": False, "available": False, "reason": reason, "endpoint": self.endpoint}
        source_dir = self.params["source_dir"]
        brought = self.recorded(source_dir) if source_dir and not self.params["update"] else None
        if brought:
            return self.keep(None, brought, "source_dir")
        failure = host_python.enter(["huggingface_hub"], self.params["host_python"])
        if failure and self.module.check_mode and not before:
            return {"changed": False, "available": False, "reason": failure, "endpoint": self.endpoint}
        after = None
        if not failure:
            after, failure = self.ask()
        if after:
            return self.keep(before, after, "hub")
        if before:
            self.module.warn(f"The recorded answer about {self.asked['repo']} is used: {failure}")
            return self.result(before, "record")
        raise UserError(f"{self.asked['repo']} cannot be looked up: {failure}")

    def check(self) -> None:
        """Raise UserError for a question or an address that cannot be."""
        hub_api.check_request(*self.asked.values())
        transfer.check_url(f"{self.endpoint}/x")
        if "@" in self.endpoint.partition("://")[2].partition("/")[0]:
            raise UserError(
                "The hub's address has a user or a password in it, which would be recorded for all to read: leave it"
                " out."
            )

    def recorded(self, directory: str) -> Json | None:
        """Return the recorded answer in a directory, or None."""
        path = os.path.join(directory, self.name)
        text = json_file.read_text(path)
        return None if text is None else hub_api.read_record(text, path)

    def keep(self, before: Json | None, after: Json, source: str) -> Json:
        """Record an answer, unless it says the same as the one before."""
        if before is not None and all(before[key] == after[key] for key in ("commit", "format", "files")):
            return self.result(before, source)
        result = self.result(after, source)
        if not self.module.check_mode:
            json_file.write_text(self.record_file, json_file.to_text(after), 0o644, self.module.atomic_move)
        shown = [{key: each[key] for key in ("commit", "files")} if each else {} for each in (before, after)]
        return {**result, "changed": True, "diff": {"before": shown[0], "after": shown[1]}}

    def result(self, found: Mapping, source: str) -> Json:
        """Return what the module returns about an answer. Raises UserError when it is not the expected file."""
        wanted, files = self.params["sha256"], found["files"]
        if wanted and [file["sha256"] for file in files] != [wanted]:
            has = "has several files" if len(files) > 1 else f"has the SHA-256 {files[0]['sha256']}"
            where = f"{self.asked['repo']} at {found['commit']}"
            raise UserError(f"{where} {has}, and {wanted} was expected: correct or remove the sha256.")
        return {
            "changed": False, "available": True, "reason": None, "source": source, "endpoint": self.endpoint,
            "commit": found["commit"], "format": found["format"],
            "files": [
                {**file, "url": hub_api.file_url(self.endpoint, found["repo"], found["commit"], file["name"])}
                for file in files
            ],
        }

    def ask(self) -> tuple[Json | None, str]:
        """Ask the hub. Returns the record, or None and one sentence. Raises UserError when asking again cannot help."""
        if os.path.exists(transfer.SYSTEM_CA_BUNDLE):   # as model_file: what the host trusts
            os.environ.setdefault("SSL_CERT_FILE", transfer.SYSTEM_CA_BUNDLE)
        os.environ.pop("HF_HUB_OFFLINE", None)
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        token = read_token(self.params["token_file"], self.endpoint)
        hub_session.bound(self.endpoint)
        # False, or the library would look for a token in the home directory
        hub = huggingface_hub.HfApi(endpoint=self.endpoint, token=token or False)
        for attempt in range(1, self.params["attempts"] + 1):
            asked_seconds = None
            try:
                return self.look_up(hub, token), ""
            except HfHubHTTPError as exc:
                asked_seconds = retry_wait.asked_seconds(exc.response.headers, time.time())
                failure = self.passing_fault(exc, token)
            except (HTTPError, OSError) as exc:
                detail = file_names.shown_text(str(exc)) or type(exc).__name__
                failure = f"{self.endpoint} cannot be reached ({detail}): {self.unreachable_cure}"
            except UserError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
                said = file_names.shown_text(repr(exc))
                failure = f"{self.endpoint} gave an answer that is not understood ({said}): check the hub's address"
            if attempt < self.params["attempts"]:
                pause = transfer.wait_seconds(attempt, self.params["retry_seconds"], asked_seconds)
                self.say(f"next attempt in {transfer.duration_text(pause)}: {failure}")
                time.sleep(pause)
        return None, f"{failure} ({self.params['attempts']} attempts)."

    def listed(self, hub: t.Any) -> tuple[t.Any, list[Json]]:
        """Return the hub's answer about a repository, and its files. Raises what huggingface_hub raises."""
        # one answer with commit and files, so that a branch cannot move in between
        info = hub.model_info(
            self.asked["repo"], revision=self.asked["revision"], files_metadata=True,
            timeout=self.params["timeout_seconds"],
        )  # fmt: skip
        every = [
            {
                "name": file.rfilename, "size_bytes": file.size, "sha256": file.lfs.sha256 if file.lfs else None,
                "git_sha1": None if file.lfs else file.blob_id,
            }
            for file in info.siblings or []
        ]  # fmt: skip
        return info, every

    def look_up(self, hub: t.Any, token: str | None) -> Json:
        """Return the record of one answer of the hub. Raises what huggingface_hub raises, and UserError."""
        info, every = self.listed(hub)
        made = hub_api.record(self.asked, info.sha or "", every, self.endpoint, json_file.utc_now())
        if info.gated:
            self.check_access(made, token)
        return made

    def check_access(self, made: Mapping, token: str | None) -> None:
        """Ask for the first file of a gated repository, whose list is public and whose files are not."""
        import huggingface_hub

        url = hub_api.file_url(self.endpoint, self.asked["repo"], made["commit"], made["files"][0]["name"])
        huggingface_hub.get_hf_file_metadata(
            url, token=token or False, timeout=self.params["timeout_seconds"], endpoint=self.endpoint
        )

    def passing_fault(self, exc: t.Any, token: str | None) -> str:
        """Return what a status says that may pass. Raises UserError for another status."""
        status, repo = exc.response.status_code, self.asked["repo"]
        if status not in transfer.RETRIED_STATUSES:
            code = exc.response.headers.get("X-Error-Code", "")
            clause = hub_api.refusal(
                self.endpoint, repo, self.asked["revision"], status, code, token is not None, self.token_place
            )
            said = clause or f"{self.endpoint} answered with HTTP status {status}: check the repository's name"
            raise UserError(f"{repo} cannot be looked up: {said}.") from exc
        many = " (too many requests: wait some minutes; with a token the limit is higher)" if status == 429 else ""
        return f"{self.endpoint} answered with HTTP status {status}{many}"
