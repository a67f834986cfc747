# SPDX-License-Identifier: GPL-3.0-or-later
"""Start TabbyAPI as exllama-server.service wants it. Run in the release's environment.

usage: exllama_server.py CHECKOUT

TabbyAPI reads its settings, keys and templates from the directory that it runs in, prints its keys into its log and
keeps a log file. Here it runs in RUNTIME_DIRECTORY, settings and key are systemd credentials, no key is printed, and
the journal is the log. Without a key of somebody's choice nobody may use the functions for administrators (loading
other models).
"""

from __future__ import annotations

import json
import os
import pathlib
import runpy
import secrets
import sys


def prepare(checkout: pathlib.Path, credentials: pathlib.Path, here: pathlib.Path) -> list[str]:
    """Make `here` a directory that TabbyAPI can run in; return the keys, which must not be printed."""
    for name in ("templates", "sampler_overrides"):
        link = here / name
        link.unlink(missing_ok=True)
        link.symlink_to(checkout / name)
    config = here / "config.yml"
    config.unlink(missing_ok=True)
    config.symlink_to(credentials / "config.yml")
    key_file = credentials / "api_key"
    if not key_file.is_file():
        return []
    keys = {"api_key": key_file.read_text(encoding="utf-8").strip(), "admin_key": secrets.token_hex(32)}
    tokens = here / "api_tokens.yml"
    tokens.unlink(missing_ok=True)
    with open(os.open(tokens, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(json.dumps(keys))  # JSON is YAML, whatever letters the key has
    return list(keys.values())


def keep_quiet(keys: list[str]) -> None:
    """Let loguru, TabbyAPI's log, print no key and write no file."""
    from loguru import logger  # in the environment of the release only

    def patch(record: dict[str, str]) -> None:
        for key in keys:
            record["message"] = record["message"].replace(key, "(not shown)")

    add = logger.add
    logger.configure(patcher=patch)
    logger.add = lambda sink, **options: -1 if isinstance(sink, str) else add(sink, **options)


def main() -> None:
    checkout = pathlib.Path(sys.argv[1])
    os.chdir(os.environ["RUNTIME_DIRECTORY"])
    keep_quiet(prepare(checkout, pathlib.Path(os.environ["CREDENTIALS_DIRECTORY"]), pathlib.Path.cwd()))
    sys.path.insert(0, str(checkout))
    sys.argv = [str(checkout / "main.py")]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
