# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every quant of a repository of the hub, by the headers of its files, without a download. Needs huggingface_hub.

Private to this collection. hub_quants.py decides which files are a model, ranged_headers.py how little is read of them.
"""

from __future__ import annotations

import re
import time
import typing as t
import urllib.parse

from .._base.errors import UserError
from .._base.types import Json
from . import file_names, gguf_header, gguf_model, hub_api, hub_lookup, hub_quants, ranged_headers

#: Of one answer; huggingface_hub's client is bound to hub_session.LONGEST_ANSWER_BYTES.
_PIECE_BYTES: t.Final = 8 << 20
#: For all headers of a repository.
_SECONDS: t.Final = 600.0
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HubFaultError(UserError):
    """What is wrong with the hub itself, whichever file is asked for."""


class HubModels(hub_lookup.HubLookup):
    """One question to the hub about all quants of a repository."""

    token_place = "a file that split_tuning_hub_token_file names"
    unreachable_cure = "check the network, or set llm_models_hub_endpoint to a mirror"

    def __init__(self, module: t.Any, params: t.Mapping[str, t.Any]) -> None:
        """Take an AnsibleModule and the options of the module hub_models_info."""
        super().__init__(module, {**params, "files": [], "record_dir": "/nonexistent"})
        self.read_bytes = 0
        self._token: str | None = None
        self._headers: dict[str, gguf_header.Header] = {}
        self._shared: ranged_headers.Shared | None = None
        self._deadline = time.monotonic() + _SECONDS

    def models(self) -> Json:
        """Return the module's result. Raises UserError in one sentence."""
        self.check()
        answer, failure = self.ask()
        if answer is None:
            raise UserError(f"{self.asked['repo']} cannot be looked up: {failure}")
        return {"changed": False, "endpoint": self.endpoint, **answer, "read_bytes": self.read_bytes}

    def look_up(self, hub: t.Any, token: str | None) -> Json:
        """Return commit and models by the hub's answers; a header that was read is not read again after a fault."""
        repo, wanted = self.asked["repo"], self.asked["quant"]
        info, every = self.listed(hub)
        commit = info.sha or ""
        if not hub_api.is_commit(commit):
            raise UserError(f"{self.endpoint} names no commit of {repo}: check the hub's address.")
        sizes = {file_names.check_name(file["name"], repo): file["size_bytes"] for file in every}
        strange = next((name for name, size in sizes.items() if not file_names.is_size(size)), None)
        if strange is not None:
            raise UserError(f"{self.endpoint} names no size of {strange} in {repo}: use another hub.")
        self._token = token
        return {
            "commit": commit,
            "models": [self.model(quant, sizes, commit) for quant in hub_quants.of(sizes, repo, wanted)],
        }

    def model(self, quant: hub_quants.Quant, sizes: t.Mapping[str, int], commit: str) -> Json:
        """Return one quant with its description, or with why it has none."""
        found: Json = {
            "quant": quant.name, "files": list(quant.files), "size_bytes": sum(sizes[name] for name in quant.files),
        }  # fmt: skip
        try:
            headers = [self.header(name, sizes[name], commit) for name in quant.files]
            model = gguf_model.describe(headers, [(name, sizes[name]) for name in quant.files])
        except HubFaultError:
            raise
        except UserError as exc:
            return {**found, "model": None, "problem": str(exc)}
        return {**found, "model": model, "problem": None}

    def header(self, name: str, size_bytes: int, commit: str) -> gguf_header.Header:
        """Return the header of one file. Raises UserError, and what huggingface_hub raises."""
        if name not in self._headers:
            place = _Place(self, hub_api.file_url(self.endpoint, self.asked["repo"], commit, name), name, size_bytes)
            self._headers[name], shared = ranged_headers.header(name, size_bytes, place.read, self._shared)
            self._shared = self._shared or shared
        return self._headers[name]

    def range_of(self, url: str, start: int, end: int) -> tuple[bytes, str, t.Any]:
        """Return bytes of an URL, where they came from, and the size of the whole by the server or None."""
        from huggingface_hub.utils import get_session, hf_raise_for_status

        if time.monotonic() > self._deadline:
            raise HubFaultError(
                f"{self.endpoint} takes more than {_SECONDS:.0f} s over the headers: try again later."
            )
        headers = {"Range": f"bytes={start}-{end - 1}"}
        same = urllib.parse.urlsplit(url).netloc == urllib.parse.urlsplit(self.endpoint).netloc
        if self._token and same:  # the client drops it where a redirect leads to another host
            headers["Authorization"] = f"Bearer {self._token}"
        with get_session().stream("GET", url, headers=headers, timeout=self.params["timeout_seconds"]) as response:
            hf_raise_for_status(response)
            said = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code != 206 or said is None or int(said[1]) != start:
                raise HubFaultError(f"{self.endpoint} serves no parts of files, only whole ones: use another hub.")
            data = bytearray()
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > end - start:
                    break
            self.read_bytes += len(data)
            return bytes(data[: end - start]), str(response.url), int(said[3])


class _Place:
    """A file at its URL; where a redirect leads is asked once."""

    def __init__(self, hub: HubModels, url: str, name: str, size_bytes: int) -> None:
        self._hub, self._url, self._name, self._size_bytes = hub, url, name, size_bytes

    def read(self, start: int, end: int) -> bytes:
        """Return these bytes of the file. Raises UserError where it has another size than the hub says."""
        found = bytearray()
        while start + len(found) < end:
            place = start + len(found)
            piece, self._url, size = self._hub.range_of(self._url, place, min(end, place + _PIECE_BYTES))
            if size != self._size_bytes:
                raise UserError(f"{self._name} has {size} bytes and {self._size_bytes} by the list: try again later.")
            if not piece:
                break
            found += piece
        return bytes(found)
