from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import web_ui_plan


@pytest.mark.parametrize(
    ("settings", "targets", "page"),
    [
        ({"web_ui": True, "source": "sdist"}, ["llama-bench", "llama-server"], True),
        ({"web_ui": True, "source": "git"}, ["llama-bench"], False),
        ({"web_ui": False, "source": "sdist"}, ["llama-server"], False),
        ({"web_ui": True, "source": "package"}, ["llama-server"], False),
    ],
)
def test_only_a_build_of_the_server_has_a_page(settings, targets, page):
    assert web_ui_plan.node_of(settings, targets) == (web_ui_plan.NODE if page else "")


def test_the_registry_and_the_proxy_are_those_of_the_host():
    host = {
        "npm_config_registry": "https://registry.example/",
        "NPM_CONFIG_CAFILE": "/etc/ca.crt",
        "npm_config_//registry.example/:_authToken": "needle",
        "https_proxy": "http://proxy.example",
        "NODE_OPTIONS": "--inspect",
        "PATH": "/home/builder/bin",
        "npm_config_cache": "/home/builder/.npm",
    }
    found = web_ui_plan.environment("/opt/node", "/opt/web-ui", host)
    assert found["npm_config_registry"] == "https://registry.example/" and found["NPM_CONFIG_CAFILE"] == "/etc/ca.crt"
    assert found["https_proxy"] == "http://proxy.example" and found["PATH"].startswith("/opt/node/bin:")
    assert found["npm_config_cache"].startswith("/opt/web-ui/") and found["npm_config_globalconfig"] == "/etc/npmrc"
    assert "needle" not in found.values() and "--inspect" not in found.values()
    assert "/home/builder/bin" not in found["PATH"]


def test_every_machine_has_a_wheel_or_a_sentence():
    assert web_ui_plan.wheel("aarch64").name.endswith("_aarch64.whl")
    assert web_ui_plan.wheel("aarch64").sha256 != web_ui_plan.wheel("x86_64").sha256
    assert web_ui_plan.NODE_ARCHIVE.fullmatch(web_ui_plan.wheel("x86_64").name)
    with pytest.raises(UserError, match="no Node is known for riscv64.*set llama_cpp_web_ui: false"):
        web_ui_plan.wheel("riscv64")


def test_the_sources_and_not_what_a_build_leaves_there_make_the_page(tmp_path):
    (tmp_path / "package-lock.json").write_text("{}")
    before = web_ui_plan.identity(tmp_path)
    for folder in ("dist", "node_modules"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "made").write_text("made")
    assert web_ui_plan.identity(tmp_path) == before
    assert web_ui_plan.PAGE_ARCHIVE.fullmatch(web_ui_plan.page_archive(before))
    (tmp_path / "package-lock.json").write_text("{ }")
    assert web_ui_plan.identity(tmp_path) != before
