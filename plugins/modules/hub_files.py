#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: hub_files
short_description: Resolve a model of the Hugging Face hub to files with size and hash, once
version_added: 0.1.0
description:
  - Asks the hub which files a model is, and records the answer on the host, so that a later run means the same bytes.
    M(homelab.mixed_gpu.model_file) fetches them.
  - A branch or tag is resolved to its commit once; that commit is used until O(update).
  - A recorded answer is used without asking the hub.
  - Files in LFS have a SHA-256; of the others the hub knows the SHA-1 of their git blob.
  - Where O(revision) is a commit, O(files) one name, and O(sha256) is given, everything is known and nothing is asked.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details:
      - In check mode the hub is asked, too, and nothing is recorded.
  diff_mode:
    support: full
options:
  repo:
    description: The repository, as C(owner/name).
    type: str
    required: true
  revision:
    description: Branch, tag or commit.
    type: str
    default: main
  files:
    description:
      - Names in the repository, or shell patterns over them. One shard of a split GGUF model stands for all of them.
      - Files that are not GGUF make a folder, such as an EXL2 or EXL3 model.
      - Without O(files) and O(quant) it is the only GGUF model of the repository, or the whole repository as a folder
        where it has none.
    type: list
    elements: str
    default: []
  quant:
    description: Name of the quantisation, such as V(Q4_K_M), as it stands in the names of GGUF files, in any case.
    type: str
  sha256:
    description: SHA-256 that the model's only file must have.
    type: str
  size_bytes:
    description: Size of the model's only file; read only where nothing is asked.
    type: int
  update:
    description:
      - Whether to ask the hub anew, for what a branch names now. When it cannot be reached, the recorded answer is
        used, with a warning.
    type: bool
    default: false
  ask:
    description: Whether the hub may be asked. Without, RV(available=false) when nothing is recorded.
    type: bool
    default: true
  endpoint:
    description:
      - Address of the hub, or of a mirror of it.
      - What is not set is the environment variable E(HF_ENDPOINT), or V(https://huggingface.co).
    type: str
  token_file:
    description:
      - File on the host with an access token, for gated and private repositories. Only its owner may read it.
      - A file that is missing counts as no token.
    type: path
  record_dir:
    description: Directory of the recorded answers.
    type: path
    default: /var/lib/mixed_gpu/models/hub
  source_dir:
    description: Directory that may hold recorded answers of another host, at its top.
    type: path
  attempts:
    description: How often to ask while the hub does not answer, or answers with a passing fault.
    type: int
    default: 5
  retry_seconds:
    description: Pause before the second attempt. It doubles with every further one. A longer one that the hub asks for
      is kept.
    type: float
    default: 1
  timeout_seconds:
    description: How long the hub may stay silent.
    type: int
    default: 30
  host_python:
    description: Python interpreter with the C(huggingface_hub) library, used when the module's own has no such library.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
requirements:
  - huggingface_hub >= 1.0, when the hub is asked (the P(homelab.mixed_gpu.host_python#role) role installs it)
seealso:
  - module: homelab.mixed_gpu.model_file
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Ask which files are the model
  homelab.mixed_gpu.hub_files:
    repo: bartowski/Llama-3.3-70B-Instruct-GGUF
    quant: Q4_K_M
  register: example_answer

- name: Fetch them
  homelab.mixed_gpu.model_file:
    path: "/srv/models/example/{{ item.name | basename }}"
    url: "{{ item.url }}"
    sha256: "{{ item.sha256 or omit }}"
    git_sha1: "{{ item.git_sha1 or omit }}"
    size_bytes: "{{ item.size_bytes }}"
  loop: "{{ example_answer.files }}"
"""

RETURN = r"""
available:
  description: Whether the files are known. V(false) where the hub must not be asked, or cannot be yet in check mode.
  returned: success
  type: bool
reason:
  description: Why the files are not known; V(none) when they are.
  returned: success
  type: str
source:
  description: Where the answer comes from, V(given), V(record), V(source_dir) or V(hub).
  returned: when available
  type: str
commit:
  description: The commit that the revision was resolved to.
  returned: when available
  type: str
format:
  description: V(gguf), one model in one file or in shards, or V(folder).
  returned: when available
  type: str
endpoint:
  description: The hub that serves the files.
  returned: success
  type: str
files:
  description:
    - In order, the files with C(name), C(size_bytes), C(sha256), C(git_sha1) (one of the hashes is V(none)) and C(url).
  returned: when available
  type: list
  elements: dict
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import hub_api, model_files, transfer


class Question:
    """One question to the hub, and its answer."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.endpoint = (self.params["endpoint"] or os.environ.get("HF_ENDPOINT") or hub_api.OFFICIAL).rstrip("/")
        self.asked = {key: self.params[key] for key in ("repo", "revision", "files", "quant")}
        self.name = hub_api.record_name(*self.asked.values())
        self.record_file = os.path.join(self.params["record_dir"], self.name)

    def answer(self) -> dict[str, t.Any]:
        """Return the module's result. Raises HubError and DownloadError."""
        hub_api.check_request(*self.asked.values())
        transfer.check_url(f"{self.endpoint}/x")
        if "@" in self.endpoint.partition("://")[2].partition("/")[0]:
            raise transfer.DownloadError(
                "The hub's address has a user or a password in it, which would be recorded for all to read: leave it"
                " out."
            )
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
        raise hub_api.HubError(f"{self.asked['repo']} cannot be looked up: {failure}")

    def recorded(self, directory: str) -> dict[str, t.Any] | None:
        """Return the recorded answer in a directory, or None."""
        path = os.path.join(directory, self.name)
        text = json_file.read_text(path)
        return None if text is None else hub_api.read_record(text, path)

    def keep(self, before: dict[str, t.Any] | None, after: dict[str, t.Any], source: str) -> dict[str, t.Any]:
        """Record an answer, unless it says the same as the one before."""
        if before is not None and all(before[key] == after[key] for key in ("commit", "format", "files")):
            return self.result(before, source)
        result = self.result(after, source)
        if not self.module.check_mode:
            json_file.write_text(self.record_file, json_file.to_text(after), 0o644, self.module.atomic_move)
        shown = [{key: each[key] for key in ("commit", "files")} if each else {} for each in (before, after)]
        return {**result, "changed": True, "diff": {"before": shown[0], "after": shown[1]}}

    def result(self, found: t.Mapping[str, t.Any], source: str) -> dict[str, t.Any]:
        """Return what the module returns about an answer. Raises HubError when it is not the file that was expected."""
        wanted, files = self.params["sha256"], found["files"]
        if wanted and [file["sha256"] for file in files] != [wanted]:
            has = "has several files" if len(files) > 1 else f"has the SHA-256 {files[0]['sha256']}"
            where = f"{self.asked['repo']} at {found['commit']}"
            raise hub_api.HubError(f"{where} {has}, and {wanted} was expected: correct or remove the sha256.")
        return {
            "changed": False, "available": True, "reason": None, "source": source, "endpoint": self.endpoint,
            "commit": found["commit"], "format": found["format"],
            "files": [
                {**file, "url": hub_api.file_url(self.endpoint, found["repo"], found["commit"], file["name"])}
                for file in files
            ],
        }

    def ask(self) -> tuple[dict[str, t.Any] | None, str]:
        """Ask the hub. Returns the record, or None and one sentence. Raises HubError when asking again cannot help."""
        if os.path.exists(transfer.SYSTEM_CA_BUNDLE):   # as model_file: what the host trusts
            os.environ.setdefault("SSL_CERT_FILE", transfer.SYSTEM_CA_BUNDLE)
        os.environ.pop("HF_HUB_OFFLINE", None)
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        token = model_files.read_token(self.params["token_file"], self.endpoint)
        # False, or the library would look for a token in the home directory
        hub = huggingface_hub.HfApi(endpoint=self.endpoint, token=token or False)
        repo, revision = self.asked["repo"], self.asked["revision"]
        for attempt in range(1, self.params["attempts"] + 1):
            retry_after = None
            try:
                # one answer with commit and files, so that a branch cannot move in between
                info = hub.model_info(
                    repo, revision=revision, files_metadata=True, timeout=self.params["timeout_seconds"]
                )
                every = [
                    {
                        "name": file.rfilename, "size_bytes": file.size,
                        "sha256": file.lfs.sha256 if file.lfs else None, "git_sha1": None if file.lfs else file.blob_id,
                    }
                    for file in info.siblings or []
                ]
                made = hub_api.record(self.asked, info.sha or "", every, self.endpoint, json_file.utc_now())
                if info.gated:
                    # its list is public, its files are not: find out before anything else is done
                    url = hub_api.file_url(self.endpoint, repo, made["commit"], made["files"][0]["name"])
                    huggingface_hub.get_hf_file_metadata(
                        url, token=token or False, timeout=self.params["timeout_seconds"], endpoint=self.endpoint
                    )
                return made, ""
            except HfHubHTTPError as exc:
                status = exc.response.status_code
                retry_after = exc.response.headers.get("Retry-After")
                if status not in transfer.RETRIED_STATUSES:
                    code = exc.response.headers.get("X-Error-Code", "")
                    clause = hub_api.refusal(self.endpoint, repo, revision, status, code, token is not None)
                    said = clause or f"{self.endpoint} answered with HTTP status {status}: check the repository's name"
                    raise hub_api.HubError(f"{repo} cannot be looked up: {said}.") from exc
                failure = f"{self.endpoint} answered with HTTP status {status}"
                if status == 429:
                    failure += " (too many requests: wait some minutes; with a token the limit is higher)"
            except (HTTPError, OSError) as exc:
                detail = str(exc).strip() or type(exc).__name__
                failure = (
                    f"{self.endpoint} cannot be reached ({detail}): check the network, set llm_models_hub_endpoint to "
                    "a mirror, or bring files and records with llm_models_source_dir"
                )
            except (ValueError, KeyError, TypeError) as exc:
                failure = f"{self.endpoint} gave an answer that is not understood ({exc!r}): check the hub's address"
            if attempt < self.params["attempts"]:
                time.sleep(transfer.wait_seconds(attempt, self.params["retry_seconds"], retry_after))
        return None, f"{failure} ({self.params['attempts']} attempts)."


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "files": {"type": "list", "elements": "str", "default": []},
            "quant": {"type": "str"},
            "sha256": {"type": "str"},
            "size_bytes": {"type": "int"},
            "update": {"type": "bool", "default": False},
            "ask": {"type": "bool", "default": True},
            "endpoint": {"type": "str"},
            "token_file": {"type": "path", "no_log": False},
            "record_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models/hub"},
            "source_dir": {"type": "path"},
            "attempts": {"type": "int", "default": 5},
            "retry_seconds": {"type": "float", "default": 1},
            "timeout_seconds": {"type": "int", "default": 30},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    try:
        if module.params["sha256"]:
            module.params["sha256"] = transfer.check_sha256(module.params["sha256"], module.params["repo"])
        result = Question(module).answer()
    except (hub_api.HubError, transfer.DownloadError) as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or module.params['record_dir']} cannot be used: {exc.strerror or exc}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
