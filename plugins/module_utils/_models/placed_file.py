# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One model file that must be at its path on the host: looked up, downloaded, copied, verified, recorded.

Private to this collection. Modules model_file and model_plan are its faces.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from .._base import host_python
from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import disk, hub_lookup, manifest, part_file, transfer
from .download import Download, Progress


class PlacedFile:
    """One file of a model on the host. Every failure is a UserError with one sentence; OSError passes."""

    def __init__(self, module: t.Any, params: Mapping, look_only: bool = False) -> None:
        """Take an AnsibleModule and the options of the module model_file; ``look_only`` as in check mode."""
        self.module, self.params = module, params
        self.dry = bool(module.check_mode) or look_only
        self.path = os.path.abspath(params["path"])
        self.part, self.corrupt = part_file.PartFile(f"{self.path}.part"), f"{self.path}.corrupt"
        self.url, self.source = params["url"], params["source"]
        #: hash of the content that is wanted, and whether it comes from an index and not from somebody's keyboard
        self.wanted: str | None = params["sha256"] or params["git_sha1"]
        self.indexed = params["size_bytes"] is not None
        self.keep_replaced = self.fetched_again = False
        #: where the file that is replaced is kept: one that was not ours is never removed
        self.aside = self.corrupt
        self.manifest_file = manifest.manifest_path(params["manifest_dir"], self.path)
        self.recorded = manifest.read_manifest(self.manifest_file, module.warn)
        self.progress = Progress(None if module.check_mode else params["progress_log"])
        self.result: Json = {
            "changed": False, "path": self.path, "present": True, "sha256": None, "size_bytes": None,
            "missing_bytes": 0, "free_bytes": self.free_bytes(), "resumed_bytes": 0, "attempts": 0, "hashed": False,
            "filesystem": disk.filesystem(self.path),
        }  # fmt: skip

    def ensure(self) -> Json:
        """Look the file up, put it in place where it is not, and return the result of model_file."""
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise UserError(f"{self.path} is there and is no file: remove it, or choose another path.")
        wanted = self.wanted
        if os.path.exists(self.path):
            if self.present_is_right():
                return self.result
            wanted = wanted or (self.hash_of_source() if self.source else None)
        elif self.url or self.source:
            self.diff({}, wanted)
        elif self.params["missing_ok"]:
            self.result.update(present=False, sha256=self.params["sha256"])
            return self.result
        else:
            raise UserError(
                f"{self.path} does not exist: put the file there, or give a url to download it from."
            )
        self.result.update(changed=True, present=not self.dry, sha256=self.params["sha256"])
        if self.url:
            self.download(wanted or "")
        else:
            self.copy(wanted)
        return self.result

    def present_is_right(self) -> bool:
        """Return whether the file that is there is the one that is wanted; record what had to be hashed to know it."""
        git = bool(self.params["git_sha1"])
        believed = manifest.believed(self.recorded, self.path, git)
        if believed is None and self.params["verify"] == "recorded":
            self.result.update(size_bytes=os.path.getsize(self.path))
            return True
        digest = believed if believed and self.params["verify"] != "full" else self.hash(self.path)
        damaged = believed is not None and digest != believed
        if believed and damaged and believed.meets(self.wanted) and not (self.url or self.source):
            raise UserError(
                f"{self.path} is damaged: its SHA-256 was {believed.sha256} and is {digest.sha256}, though its "
                "size and time are unchanged: check the disk, and put the file there again."
            )
        wanted = self.hash_of_source() if self.wanted is None and self.source else self.wanted
        if digest.meets(wanted):
            self.result.update(sha256=digest.sha256, size_bytes=os.path.getsize(self.path))
            if digest != believed:
                self.record(digest)
            return True
        self.check_replaceable(digest, damaged, known=believed is not None)
        self.diff({"path": self.path, "sha256": digest.sha256}, wanted)
        return False

    def check_replaceable(self, digest: manifest.Digest, damaged: bool, known: bool) -> None:
        """Raise UserError unless another file may come; what was not put there by this collection is kept."""
        if not self.url and not self.source:
            raise UserError(
                f"{self.path} has the SHA-256 {digest.sha256}, and {self.wanted} was expected: "
                "put the right file there, or correct the sha256."
            )
        # it might be the only copy
        self.keep_replaced = damaged or not known
        if not known:
            self.aside = disk.free_name(f"{self.path}.replaced")
        if self.keep_replaced and self.url:
            state = "is damaged" if damaged else "is not the requested file, and was not downloaded by this collection"
            self.module.warn(
                f"{self.path} {state} (its SHA-256 is {digest.sha256}): it is downloaded again, and the present file "
                f"is kept as {self.aside}."
            )

    def diff(self, before: Json, wanted: str | None) -> None:
        """Set the difference for diff mode."""
        self.result["diff"] = {"before": before, "after": {"path": self.path, "sha256": wanted}}

    def hash(self, path: str) -> manifest.Digest:
        """Return the hashes of a file, with progress."""
        self.progress.start("checking SHA-256", os.path.getsize(path))
        self.result["hashed"] = True
        digest = manifest.digest(path, bool(self.params["git_sha1"]), self.progress.tick)
        self.progress.start(None, 0)
        return digest

    def record(self, digest: manifest.Digest) -> None:
        """Write the manifest of the file that is at its place."""
        self.result["changed"] = True
        if self.dry:
            return
        kind = "url" if self.url else "copy" if self.source else "local"
        source = {"kind": kind, "from": transfer.shown_url(self.url) if self.url else self.source or self.path}
        manifest.write_manifest(self.manifest_file, self.path, digest, source, self.module.atomic_move)
        if self.url:
            self.part.forget()  # of a play that was killed before it could record

    def free_bytes(self) -> int:
        """Return what may be written to the file's filesystem. A corrupt file counts as free: a download removes it."""
        corrupt = os.path.getsize(self.corrupt) if self.url and disk.is_own_file(self.corrupt) else 0
        return max(0, disk.free_space(self.path)[1] + corrupt - (self.params["reserve_mib"] << 20))

    def need(self, n_bytes: int, what: str) -> None:
        """Raise UserError unless there is room for so many bytes."""
        free = self.free_bytes()
        if n_bytes > free:
            raise UserError(
                f"{disk.free_space(self.path)[0]} has {transfer.size_text(free)} free (beyond the reserve of "
                f"{self.params['reserve_mib']} MiB), and {what} needs {transfer.size_text(n_bytes)}: free some space, "
                "or choose another directory."
            )

    # ---- publication -------------------------------------------------------------------------------------------------

    def publish(self, wanted: str | None, origin: str) -> bool:
        """Verify the unfinished file and put it in place in one step. False: wrong, and worth another download."""
        digest = self.hash(self.part.path)
        if not digest.meets(wanted):
            self.refuse_part(digest, wanted, origin)
            return False
        if self.keep_replaced and os.path.exists(self.path):
            self.keep_present()
        disk.publish(self.part.path, self.path, self.module.atomic_move)
        self.part.forget()
        self.record(digest)
        size_bytes = os.path.getsize(self.path)
        self.result.update(sha256=digest.sha256, size_bytes=size_bytes)
        self.progress.say(f"complete, {transfer.size_text(size_bytes)}")
        return True

    def refuse_part(self, digest: manifest.Digest, wanted: str | None, origin: str) -> None:
        """Keep a file with the wrong hash aside. Raises UserError unless another download may help."""
        os.replace(self.part.path, self.corrupt)
        self.part.forget()
        found = f"SHA-256 {digest.sha256}" if self.params["sha256"] else f"git SHA-1 {digest.git_sha1}"
        said = f"{origin} has the {found}, and {wanted} was expected"
        if self.url and self.indexed and not self.fetched_again:
            self.fetched_again = True
            self.module.warn(f"{said}: the download is kept as {self.corrupt}, and the file is downloaded again.")
            return
        again = " twice" if self.fetched_again else ""
        cure = "the server or the way to it is at fault; run the play again later, or use another mirror"
        if not self.indexed:
            cure = "correct the sha256, or find the right file"
        raise UserError(f"{said}{again}: nothing was replaced, and the file is kept as {self.corrupt}; {cure}.")

    def keep_present(self) -> None:
        """Give the file that is to be replaced a second name, so that there is a file at its place all the time."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.aside)
        try:
            os.link(self.path, self.aside)
        except OSError:                                  # a filesystem without hard links
            os.replace(self.path, self.aside)

    # ---- local files -------------------------------------------------------------------------------------------------

    def hash_of_source(self) -> str:
        """Return the SHA-256 of the file to copy, which decides whether the copy is current."""
        self.check_source()
        return self.hash(self.source).sha256

    def check_source(self) -> None:
        """Raise UserError unless there is a file to copy."""
        if not os.path.isfile(self.source):
            raise UserError(f"{self.source} cannot be copied, since it is no file: correct the source.")

    def copy(self, wanted: str | None) -> None:
        """Copy the source beside its place, verify it, publish it."""
        disk.check_owner(self.path, self.params["trusted_owners"])
        self.check_source()
        size_bytes = os.path.getsize(self.source)
        self.result.update(size_bytes=size_bytes, missing_bytes=size_bytes)
        self.need(size_bytes, self.path)
        if not self.dry:
            self.copy_bytes(self.source)
            self.publish(wanted, self.source)

    def copy_bytes(self, source: str) -> None:
        """Copy a file to the unfinished file."""
        self.progress.start("copying", os.path.getsize(source))
        disk.make_parents(self.path)
        done = 0
        with open(source, "rb") as reader, self.part.open(0) as writer:
            while chunk := reader.read(manifest.CHUNK_BYTES):
                writer.write(chunk)
                done += len(chunk)
                self.progress.tick(done)

    def copied_from_source_dir(self, wanted: str) -> bool:
        """Publish a file of source_dir with the wanted content, where there is one."""
        if not os.path.isdir(self.params["source_dir"]):
            raise UserError(f"{self.params['source_dir']} is no directory: mount it, or correct the source_dir.")
        for path in disk.candidates(self.params["source_dir"], self.path, self.params["size_bytes"]):
            self.progress.say(f"looking at {path}")
            if self.hash(path).meets(wanted):
                self.need(os.path.getsize(path), self.path)
                self.copy_bytes(path)
                return self.publish(wanted, path)
        return False

    # ---- downloads ---------------------------------------------------------------------------------------------------

    def download(self, wanted: str) -> None:
        """Take the file from source_dir, or download it."""
        disk.check_owner(self.path, self.params["trusted_owners"])
        if not self.dry and self.whole_part_is_right(wanted):
            return
        if self.params["source_dir"] and not self.dry and self.copied_from_source_dir(wanted):
            return
        name = transfer.shown_url(self.url)
        move = None if self.dry else self.module.atomic_move
        token = hub_lookup.read_token(self.params["token_file"], self.url)
        job = Download(self.params, self.part, self.progress, self.result, self.need, token, move)
        if self.indexed:
            missing = self.params["size_bytes"] - self.part.resumable(wanted)[0]
            self.result.update(size_bytes=self.params["size_bytes"], missing_bytes=max(0, missing))
            if self.dry:
                return
        reason = host_python.enter(["requests"], self.params["host_python"])
        if reason and self.dry:
            self.result["missing_bytes"] = None
            self.module.warn(f"The size of {name} is unknown: {reason}")
            return
        if reason:
            raise UserError(f"{name} cannot be downloaded: {reason}")
        if not self.dry and self.corrupt_is_right(wanted):
            self.publish(wanted, name)
            return
        job.fetch(wanted)
        while not self.dry and not self.publish(wanted, name):
            job.fetch(wanted)

    def whole_part_is_right(self, wanted: str) -> bool:
        """Publish an unfinished file that has all its bytes, before anybody is asked: a play may have ended then."""
        size_bytes = self.part.whole_bytes(wanted, self.params["size_bytes"])
        if size_bytes is None:
            return False
        self.result.update(size_bytes=size_bytes, resumed_bytes=size_bytes)
        return self.publish(wanted, self.part.path)

    def corrupt_is_right(self, wanted: str) -> bool:
        """Take back a file that was kept aside and has the wanted hash now that the sha256 is corrected."""
        if not disk.is_own_file(self.corrupt):
            return False
        if self.hash(self.corrupt).meets(wanted):
            self.part.forget()
            os.replace(self.corrupt, self.part.path)
            return True
        os.unlink(self.corrupt)
        return False
