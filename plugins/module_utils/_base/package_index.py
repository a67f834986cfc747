# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where a Python package index has a file, by pip's own settings of the host. Private to this collection.

pip itself runs the build back end of a source distribution even to download it, with whatever that needs and without a
hash. What is asked for here is one file, and nothing of an index is run. Pure functions, but for own_index,
configuration_texts and for looking into local folders.
"""

from __future__ import annotations

import configparser
import dataclasses
import html.parser
import os
import pathlib
import re
import subprocess
import typing as t
import urllib.parse

from . import json_file
from .errors import UserError

#: The Accept header for a page of an index (PEP 503 and PEP 691).
ACCEPT: t.Final = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1, */*;q=0.01"
)
_COMMAND: t.Final = "download"
_OFF: t.Final = ("", "0", "n", "no", "off", "f", "false")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What pip's configuration says of package indexes: URLs of indexes and of pages with links, in pip's order."""

    indexes: tuple[str, ...]
    links: tuple[str, ...]
    certificate: str
    proxy: str
    trusted_hosts: tuple[str, ...]

    def trusts(self, url: str) -> bool:
        """Return whether pip would not check the certificate of a URL."""
        parts = urllib.parse.urlsplit(url)
        return {parts.hostname, f"{parts.hostname}:{parts.port}"} & set(self.trusted_hosts) != set()


def own_index(pythons: t.Iterable[str]) -> str:
    """Return the index that pip asks where no configuration names one, of the first Python that has pip; else "".

    pip has no public name for it.
    """
    asked = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    for python in pythons:
        try:
            done = subprocess.run([python, "-I", "-c", asked], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    return ""


def configuration_texts(environment: t.Mapping[str, str]) -> list[str]:
    """Return the contents of pip's configuration files on this host, the most important last."""
    home, named = pathlib.Path(environment.get("HOME", "/root")), environment.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return []
    system = (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    paths = [*(pathlib.Path(folder, "pip/pip.conf") for folder in system if folder), pathlib.Path("/etc/pip.conf")]
    if not os.path.exists(named):
        paths.append(home / ".pip/pip.conf")
        paths.append(pathlib.Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "pip/pip.conf"))
    paths += [pathlib.Path("/usr/pip.conf"), *([pathlib.Path(named)] if named else [])]
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()]


def settings(texts: t.Iterable[str], environment: t.Mapping[str, str], own: str = "") -> Settings:
    """Return what configuration files (the most important last) and the variables PIP_* say.

    C(own) is the index that is asked where they name none (own_index).
    Raises UserError for a file that is no configuration.
    """
    sections: dict[str, dict[str, str]] = {"global": {}, _COMMAND: {}}
    for text in texts:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error as exc:
            reason = " ".join(str(exc).split())
            raise UserError(f"pip's configuration cannot be read ({reason}); see pip config debug.") from exc
        for section, found in sections.items():
            if parser.has_section(section):
                found |= {name.replace("_", "-").lower(): value for name, value in parser.items(section)}
    prefix = "PIP_"
    given = {
        name[len(prefix) :].replace("_", "-").lower(): value
        for name, value in environment.items()
        if name.startswith(prefix) and value
    }
    found = sections["global"] | sections[_COMMAND] | given
    main = found.get("index-url", "").strip() or own
    indexes = [*([main] if main else []), *found.get("extra-index-url", "").split()]
    return Settings(
        indexes=() if found.get("no-index", "").lower() not in _OFF else tuple(indexes),
        links=tuple(found.get("find-links", "").split()),
        certificate=found.get("cert", ""),
        proxy=found.get("proxy", ""),
        trusted_hosts=tuple(found.get("trusted-host", "").split()),
    )


def pages(found: Settings, project: str) -> list[str]:
    """Return the URLs of the pages that may link to files of a project, those of the indexes first."""
    name = re.sub(r"[-_.]+", "-", project).lower()
    urls = [f"{index.rstrip('/')}/{name}/" for index in found.indexes]
    # a folder has no server that would answer with its page
    urls = [url + "index.html" if url.startswith("file:") else url for url in urls]
    return urls + [_url(place) for place in found.links if not _folder(place)]


def local_files(found: Settings, name: str) -> list[str]:
    """Return the URLs of the files of that name in the folders of find-links."""
    folders = [_folder(place) for place in found.links]
    return [(folder / name).as_uri() for folder in folders if folder and (folder / name).is_file()]


def _url(place: str) -> str:
    return place if "://" in place else pathlib.Path(place).absolute().as_uri()


def _folder(place: str) -> pathlib.Path | None:
    parts = urllib.parse.urlsplit(_url(place))
    path = pathlib.Path(urllib.parse.unquote(parts.path))
    return path if parts.scheme == "file" and path.is_dir() else None


def link(page: str, url: str, name: str) -> str | None:
    """Return the URL of a file on a page of an index, in HTML or JSON; `url` is the page's own. None: not there.

    A link without a user and password gets those of the page, where both are on one host.
    Raises UserError for a page that is neither.
    """
    if page.lstrip().startswith("{"):
        try:
            files = [(str(file["filename"]), str(file["url"])) for file in json_file.from_text(page)["files"]]
        except (ValueError, KeyError, TypeError) as exc:
            raise UserError(f"{without_password(url)} is no page of a package index; correct pip's index-url.") from exc
        base = url
    else:
        reader = _Links()
        reader.feed(page)
        base = _joined(url, reader.base) or url
        files = [(_file_name(href), href) for href in reader.found]
    own = urllib.parse.urlsplit(url).scheme
    for title, href in files:
        whole = _joined(base, href) if title == name else ""
        # only a page of this host leads to files of this host
        if urllib.parse.urlsplit(whole).scheme in ("http", "https", own):
            return _with_login(urllib.parse.urldefrag(whole).url, url)
    return None


def _joined(base: str, href: str) -> str:
    """Return an address relative to another, or "" for one that cannot be read."""
    try:
        return urllib.parse.urljoin(base, href)
    except ValueError:
        return ""


class _Links(html.parser.HTMLParser):
    """The links of a page, and the address that they are relative to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a link, or the address of the page."""
        href = dict(attrs).get("href") or ""
        if tag == "a" and href:
            self.found.append(href)
        elif tag == "base" and href:
            self.base = self.base or href


def _file_name(href: str) -> str:
    try:
        return urllib.parse.unquote(urllib.parse.urlsplit(href).path).rpartition("/")[2]
    except ValueError:  # http://[bad
        return ""


def _with_login(url: str, page: str) -> str:
    parts, origin = urllib.parse.urlsplit(url), urllib.parse.urlsplit(page)
    login, at, host = origin.netloc.rpartition("@")
    if at and parts.netloc == host and parts.scheme == origin.scheme:
        return urllib.parse.urlunsplit(parts._replace(netloc=f"{login}@{host}"))
    return url


def without_password(url: str) -> str:
    """Return a URL as it may be shown: without user and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
