# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: split_report
short_description: Render the report of a tuning as HTML
version_added: 0.1.0
description:
  - Renders a Jinja page about one entry of C(ansible_local.mixed_gpu.models) with every value escaped, which the
    template module of Ansible cannot do.
  - The page gets C(view) (texts and bar widths), C(charts) (SVG by name of the panel) and C(extra).
requirements:
  - matplotlib, on the controller, unless O(panels) is empty
options:
  _input:
    description: One entry of C(ansible_local.mixed_gpu.models), see C(docs/data_formats.md).
    type: dict
    required: true
  template:
    description: Text of the page's Jinja template.
    type: str
    required: true
  served:
    description: The C(tests) that M(homelab.mixed_gpu.llama_server_benchmark) returned, under that key.
    type: dict
  devices:
    description: Memory per device as the loaded server reports it, from M(homelab.mixed_gpu.llama_server_info).
    type: list
    elements: dict
  expectations:
    description: Published expectations to compare with, see the README of the role C(homelab.mixed_gpu.report).
    type: list
    elements: dict
  power:
    description:
      - What the cards drew while the server generated, as C(readings), a list of C(uuid) and C(power_draw_watts), and
        the C(tests) of the same run.
    type: dict
  panels:
    description: The charts to draw. An empty list needs no matplotlib.
    type: list
    elements: str
    choices: [decode, prefill, objective]
    default: [decode, prefill, objective]
  extra:
    description: Further values for the page, for example the name of the host.
    type: dict
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Write a page
  ansible.builtin.copy:
    content: "{{ recorded | homelab.mixed_gpu.split_report(lookup('ansible.builtin.file', 'page.html.j2')) }}"
    dest: page.html
    mode: "0644"
  vars:
    recorded: "{{ ansible_local.mixed_gpu.models[ansible_local.mixed_gpu.active] }}"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.split_chart import split_chart
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import report_page
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup


def split_report(
    entry: t.Mapping[str, t.Any],
    template: str,
    served: t.Mapping[str, t.Any] | None = None,
    devices: t.Sequence[t.Mapping[str, t.Any]] | None = None,
    expectations: t.Sequence[t.Mapping[str, t.Any]] | None = None,
    power: t.Mapping[str, t.Any] | None = None,
    panels: t.Sequence[str] = report_page.QUANTITIES,
    extra: t.Mapping[str, t.Any] | None = None,
) -> str:
    """Return the page as text. Raises AnsibleFilterError for an entry or a template that cannot be read."""
    try:
        view = report_page.report_view(entry, served, devices, expectations or (), power)
        charts = {
            panel: Markup(split_chart(entry, [panel]))
            for panel in panels
            if report_page.has_points(entry, panel)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"split_report: the input is no entry of ansible_local.mixed_gpu.models"
            f" ({report_page.problem_words(error)}); run split_tuning again to record one."
        ) from error
    environment = SandboxedEnvironment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        return environment.from_string(str(template)).render(view=view, charts=charts, extra=extra or {})
    except TemplateError as error:
        raise AnsibleFilterError(f"split_report: the template cannot be rendered: {error}; correct it.") from error


class FilterModule:
    """Filters that write pages."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"split_report": split_report}
