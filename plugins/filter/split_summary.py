# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: split_summary
short_description: Say in a few lines what was measured and chosen
version_added: 0.1.0
description:
  - Turns one entry of C(ansible_local.mixed_gpu.models) into lines of plain text for the end of a play.
  - What was chosen and why, what it gains over llama.cpp's default split, memory per device, the measured splits, what
    the running server delivers, and where to look further. At most 100 columns wide; addresses and paths are never
    broken.
options:
  _input:
    description: One entry of C(ansible_local.mixed_gpu.models), see C(docs/data_formats.md).
    type: dict
    required: true
  served:
    description: The C(tests) that M(homelab.mixed_gpu.llama_server_benchmark) returned, under that key.
    type: dict
  devices:
    description: Memory per device as the loaded server reports it, from M(homelab.mixed_gpu.llama_server_info).
    type: list
    elements: dict
  url:
    description: Where the server can be reached.
    type: str
  report:
    description: Where the HTML report is.
    type: str
  more:
    description: Lines that say how to look further, printed as they are.
    type: list
    elements: str
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what was chosen
  ansible.builtin.debug:
    msg: "{{ recorded | homelab.mixed_gpu.split_summary(url='http://127.0.0.1:8080') }}"
  vars:
    recorded: "{{ ansible_local.mixed_gpu.models[ansible_local.mixed_gpu.active] }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import report_page


def split_summary(
    entry: t.Mapping[str, t.Any],
    served: t.Mapping[str, t.Any] | None = None,
    devices: t.Sequence[t.Mapping[str, t.Any]] | None = None,
    url: str | None = None,
    report: str | None = None,
    more: t.Sequence[str] | None = None,
) -> list[str]:
    """Return the summary of a recorded entry as lines. Raises AnsibleFilterError when the entry is no such entry."""
    try:
        return report_page.summary_lines(entry, served, devices, url, report, more or ())
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"split_summary: the input is no entry of ansible_local.mixed_gpu.models"
            f" ({report_page.problem_words(error)}); run split_tuning again to record one."
        ) from error


class FilterModule:
    """Filters that speak."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"split_summary": split_summary}
