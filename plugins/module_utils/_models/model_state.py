# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All models of llm_models on one host: which files they need, which are there, what is missing, what is recorded.

Private to this collection. Module model_plan is its face.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.types import Json
from . import disk, entries, random_model
from .download import Progress
from .hub_lookup import PATIENCE, HubLookup
from .placed_file import PlacedFile
from .random_model import RandomModel

Look = Json


class ModelState:
    """The state of the models of a host. Every failure is a UserError or a UserError with one sentence."""

    def __init__(self, module: t.Any) -> None:
        """Take an AnsibleModule with the options of the module model_plan."""
        self.module, self.params = module, module.params
        self.looks: list[Look] = []
        self.answers: list[Json] = []

    def resolve(self, ask: bool) -> None:
        """Find out which files of the hub the models are; ``ask``: whether the hub itself may be asked."""
        entries.model_files(self.params["models"], self.params["path"])  # all that is wrong, before a question
        progress = Progress(self.params["progress_log"] if ask else None)
        try:
            for question in entries.hub_questions(self.params["models"]):
                self.answers.append({**self.answer(question, ask, progress), "item": question})
        finally:
            progress.close()
        self.files = entries.model_files(self.params["models"], self.params["path"], self.answers)

    def answer(self, question: Json, ask: bool, progress: Progress) -> Json:
        """Return the result of hub_files for one question."""
        hub = self.params["hub"]
        options = {
            **question, "update": hub["update"], "ask": ask, "endpoint": hub["endpoint"] or None,
            "token_file": hub["token_file"], "source_dir": hub["source_dir"] or None,
            "record_dir": f"{self.params['manifest_dir']}/hub", "host_python": self.params["host_python"],
            **PATIENCE,
        }  # fmt: skip
        progress.say(f"asking for the files of {question['repo']}")
        return HubLookup(self.module, options, progress.say).answer()

    def options(self, file: Json, **more: t.Any) -> Json:
        """Return the options of model_file for one file."""
        return {
            "path": file["path"], "url": None, "source": None, "sha256": file["sha256"], "git_sha1": file["git_sha1"],
            "size_bytes": None, "source_dir": None, "token_file": None, "verify": "recorded", "missing_ok": True,
            "reserve_mib": self.params["reserve_mib"], "attempts": 5, "retry_seconds": 1.0, "timeout_seconds": 60,
            "progress_log": None, "manifest_dir": self.params["manifest_dir"],
            "host_python": self.params["host_python"], "trusted_owners": self.params["trusted_owners"], **more,
        }  # fmt: skip

    def look(self, file: Json, **options: t.Any) -> Look:
        """Return the result of model_file for one file, which is not changed."""
        placed = PlacedFile(self.module, self.options(file, **options), look_only=True)
        try:
            return {**placed.ensure(), "item": file}
        finally:
            placed.progress.close()

    def plan(self) -> Json:
        """Return what has to be generated and downloaded. Quick: manifests are believed, sizes come from the index.

        A server is asked only for a size that is not known. Raises UserError where the disk has no room for it.
        """
        self.resolve(ask=True)
        for file in self.files:
            if file["kind"] == "generate":
                found = RandomModel(self.module, self.random_options(file)).look()
                free = max(0, found["free_bytes"] - (self.params["reserve_mib"] << 20))
                self.looks.append({**found, "free_bytes": free, "item": file})
                continue
            hub = self.params["hub"]["token_file"] if file["kind"] == "repo" else None
            self.looks.append(self.look(
                file, url=file["url"], size_bytes=file["size_bytes"], token_file=hub, missing_ok=not file["known"],
            ))  # fmt: skip
        shortfall = entries.disk_shortfall(self.looks)
        if shortfall:
            raise UserError(shortfall)
        pending = entries.pending_files(self.looks, self.params["verify"] == "full")
        # one that may be what is wanted after all is looked at by the download
        settled = {look["path"] for look in self.looks} - {file["path"] for file in pending}
        set_aside = [f"{path}.corrupt" for path in sorted(settled)]
        return {
            "changed": any(answer["changed"] for answer in self.answers),
            "remove": [path for path in set_aside if disk.is_older(path, self.params["keep_corrupt_days"])],
            "download": [file for file in pending if file["kind"] != "generate"],
            "generate": [self.random_options(file) for file in pending if file["kind"] == "generate"],
        }

    def random_options(self, file: Json) -> Json:
        """Return the options of random_gguf for a model that is generated."""
        options = random_model.checked_options(file["generate"])
        given = {key: self.params[key] for key in ("manifest_dir", "host_python", "trusted_owners")}
        return {"path": file["path"], **given, **options}

    def verify(self) -> Json:
        """Compare every file with what was recorded of it. Raises UserError with a sentence per file that differs."""
        self.resolve(ask=False)
        wrong = [
            f"{answer['item']['id']} cannot be verified: {answer['reason']}."
            for answer in self.answers if not answer["available"]
        ]  # fmt: skip
        for file in (file for file in self.files if file["known"]):
            try:
                self.looks.append(self._verified(file))
            except UserError as exc:
                wrong.append(str(exc))
        if wrong:
            raise UserError(" ".join(wrong))
        return {"changed": False}

    def _verified(self, file: Json) -> Look:
        """Return the look at a file as it was recorded. Raises UserError for any other."""
        full = self.params["verify"] == "full" and file["path"] not in self.params["verified"]
        look = self.look(
            file, verify="full" if full else "manifest", missing_ok=False, progress_log=self.params["progress_log"]
        )
        if look["hashed"] and self.params["verify"] != "full":
            raise UserError(
                f"{file['path']} was never recorded or has changed since: run the role llm_models to record it, "
                "or put the right file there."
            )
        return look

    def present(self) -> Json:
        """Look up what is there. Changes nothing, reads no file, asks nobody."""
        self.resolve(ask=False)
        self.looks = [self.look(file) for file in self.files]
        return {"changed": False}
