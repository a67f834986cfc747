# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: hub_questions
short_description: List what is to be asked of the Hugging Face hub for models
version_added: 0.1.0
description:
  - Checks the entries of the role P(homelab.mixed_gpu.llm_models#role) and returns, for each that names a repository,
    the options of M(homelab.mixed_gpu.hub_files).
options:
  _input:
    description: The models, as the variable C(llm_models) lists them.
    type: list
    elements: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show which repositories are asked
  ansible.builtin.debug:
    msg: "{{ llm_models | homelab.mixed_gpu.hub_questions | map(attribute='repo') }}"
"""

RETURN = r"""
_value:
  description: Dicts with C(id), C(repo), C(revision), C(files), C(quant), C(sha256) and C(size_bytes).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import transfer


def hub_questions(entries: t.Any) -> list[dict[str, t.Any]]:
    """Return one dict per repository; AnsibleFilterError with one sentence on an entry that is not understood."""
    try:
        return transfer.hub_questions(entries)
    except transfer.DownloadError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filter for the repositories of models."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"hub_questions": hub_questions}
