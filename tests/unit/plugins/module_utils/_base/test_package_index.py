# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""pip's settings, and pages of an index, as they occur."""

from __future__ import annotations

import json
import os
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import package_index
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from pip._internal.models import index

NAME = "llama_cpp_python-1.0.tar.gz"


def test_without_configuration_it_is_the_one_that_pip_knows():
    own = package_index.own_index(["/nonexistent/python", "/bin/false", sys.executable])
    assert own == index.PyPI.simple_url
    found = package_index.settings([], {}, own)
    assert package_index.pages(found, "llama_cpp.python") == [f"{own}/llama-cpp-python/"]
    assert not found.trusts(own)
    assert package_index.settings([], {"PIP_INDEX_URL": "https://d"}, own).indexes == ("https://d",)
    assert package_index.settings([], {}, package_index.own_index(["/bin/false"])).indexes == ()


def test_files_sections_and_variables_come_in_pips_order():
    texts = ["[global]\nindex-url = https://a/simple\nextra_index_url = https://b/x\n", "[download]\nindex-url=https://c\n"]
    assert package_index.settings(texts, {}).indexes == ("https://c", "https://b/x")
    assert package_index.settings(texts, {"PIP_INDEX_URL": "https://d"}).indexes == ("https://d", "https://b/x")
    assert package_index.settings(texts, {"PIP_NO_INDEX": "1"}).indexes == ()
    more = package_index.settings(["[global]\ntrusted-host = mirror:81 m2\ncert = /c.pem\nproxy = http://p:3128\n"], {})
    assert (more.certificate, more.proxy) == ("/c.pem", "http://p:3128")
    trusted = [more.trusts(url) for url in ("https://mirror:81/x", "https://mirror/x", "https://m2/x")]
    assert trusted == [True, False, True]


def test_the_most_important_file_is_the_last(tmp_path):
    paths = {"XDG_CONFIG_DIRS": "one", "HOME": "two", "XDG_CONFIG_HOME": "two/config"}
    environment = {name: str(tmp_path / path) for name, path in paths.items()}
    named = tmp_path / "named.conf"
    for path in (tmp_path / "one/pip/pip.conf", tmp_path / "two/config/pip/pip.conf", named):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {path.relative_to(tmp_path)}")
    files = [text for text in package_index.configuration_texts(environment) if text.startswith("# ")]
    assert files == ["# one/pip/pip.conf", "# two/config/pip/pip.conf"]
    files = package_index.configuration_texts(environment | {"PIP_CONFIG_FILE": str(named)})
    assert files[-1] == "# named.conf" and "# two/config/pip/pip.conf" not in files
    assert package_index.configuration_texts(environment | {"PIP_CONFIG_FILE": os.devnull}) == []


def test_a_damaged_configuration_is_one_sentence():
    with pytest.raises(UserError, match="pip's configuration cannot be read") as caught:
        package_index.settings(["index-url = https://a"], {})
    assert len(str(caught.value).splitlines()) == 1


def test_folders_of_links_are_looked_into(tmp_path):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / NAME).touch()
    for place in ((tmp_path / "a b").as_uri(), "file:///nonexistent https://example.com/links.html"):
        found = package_index.settings([], {"PIP_FIND_LINKS": place, "PIP_NO_INDEX": "yes"})
        if "a%20b" in place:
            assert package_index.local_files(found, NAME) == [(tmp_path / "a b" / NAME).as_uri()]
        else:
            assert package_index.pages(found, "x") == place.split()


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (f'<a data-requires-python="&gt;=3.8" href="../../f/{NAME}#sha256=ab">x</a>', f"https://u:p@h/f/{NAME}"),
        (f'<base href="https://files/"><A HREF="{NAME}">', f"https://files/{NAME}"),
        (f'<a href="https://cdn.example/llama%5Fcpp_python-1.0.tar.gz">{NAME}</a>', "https://cdn.example/llama%5Fcpp_python-1.0.tar.gz"),
        (f'{{"files": [{{"filename": "{NAME}", "url": "./f?x=1"}}]}}', "https://u:p@h/simple/llama-cpp-python/f?x=1"),
        ('<a href="llama_cpp_python-1.0.tar.gz.asc">x</a><a>y</a>', None),
        ("", None),
    ],
)  # fmt: skip
def test_links_of_both_kinds_of_page(page, expected):
    assert package_index.link(page, "https://u:p@h/simple/llama-cpp-python/", NAME) == expected


@pytest.mark.parametrize("href", ["http://[bad/", "file:///etc/", "javascript:", "ftp://h/", "data:,/"])
def test_a_link_that_leads_nowhere_is_passed_over(href):
    page = f"<base href='{href}'><a href='{href}{NAME}'>x</a><a href='https://g/{NAME}'>y</a>"
    assert package_index.link(page, "https://h/simple/x/", NAME) == f"https://g/{NAME}"
    as_json = json.dumps({"files": [{"filename": NAME, "url": f"{href}{NAME}"}]})
    assert package_index.link(as_json, "https://h/simple/x/", NAME) is None


@pytest.mark.parametrize("page", ["{", '{"files": 3}', '{"files": [7]}', '{"a":' + "[" * 100000])
def test_a_page_that_is_none_is_one_sentence(page):
    with pytest.raises(UserError, match="https://h/x is no page of a package index; correct pip's index-url"):
        package_index.link(page, "https://u:p@h/x", NAME)
