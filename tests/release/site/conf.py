"""Sphinx's settings of the browsable documentation; docs_site.sh puts the pages beside this file."""

from __future__ import annotations

import typing as t

from docutils import nodes

project = "homelab.mixed_gpu"
html_title = project
extensions = ["myst_parser", "sphinx_antsibull_ext"]
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
myst_heading_anchors = 4  # links such as troubleshooting.md#a-heading
nitpicky = True

#: Where Ansible's own documentation has what antsibull-docs refers to. Nothing is fetched while building.
_ANSIBLE: t.Final = "https://docs.ansible.com/ansible/latest/"
_LABELS: t.Final = {
    "action_plugins": "plugins/action.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "callback_plugins": "plugins/callback.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}


def link_to_ansible(_app: t.Any, _env: t.Any, node: t.Any, shown: nodes.Node) -> nodes.reference | None:
    """Return a link to Ansible's documentation, or None: Sphinx then says that the target is missing."""
    kind, target = node["reftype"], node["reftarget"]
    page = _LABELS.get(target) if kind == "ref" else None
    if kind == "envvar" and target.startswith("ANSIBLE_"):
        page = f"reference_appendices/config.html#envvar-{target}"
    return nodes.reference("", "", shown, refuri=_ANSIBLE + page) if page else None


def setup(app: t.Any) -> None:
    """Let Sphinx ask for references that no page has."""
    app.connect("missing-reference", link_to_ansible)
