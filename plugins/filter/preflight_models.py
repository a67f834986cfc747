# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: preflight_models
short_description: Say which files C(llm_models) means, and how large they are as far as is known
version_added: 0.1.0
description:
  - What M(homelab.mixed_gpu.host_info) is to look at, and what P(homelab.mixed_gpu.preflight_checks#filter) judges
    memory and disk room by.
  - An entry that is not understood becomes a C(problem), not a failure.
positional: _input, directory
options:
  _input:
    description: The variable C(llm_models) of the role P(homelab.mixed_gpu.llm_models#role).
    type: list
    elements: dict
    required: true
  directory:
    description: Directory of the models that are downloaded or generated.
    type: str
    required: true
  sizes_mib:
    description: Sizes by id, for models that are not on the host yet and whose file is not a well-known one.
    type: dict
    default: {}
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show which files are meant
  ansible.builtin.debug:
    msg: "{{ (llm_models | homelab.mixed_gpu.preflight_models('/srv/models')).files }}"
"""

RETURN = r"""
_value:
  description:
    - C(directory), C(files) (paths), C(models) (dicts with C(id), C(paths), C(kind) and C(size_mib)), and C(problem),
      one sentence or none.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import host_checks


def preflight_models(
    entries: t.Sequence[t.Mapping[str, t.Any]], directory: str, sizes_mib: t.Mapping[str, t.Any] | None = None
) -> dict[str, t.Any]:
    """Return the models. Raises AnsibleFilterError for a size that is no whole number of MiB."""
    try:
        return host_checks.models(entries, directory, sizes_mib or {})
    except ValueError as error:
        raise AnsibleFilterError(f"preflight_models: {error}.") from error


class FilterModule:
    """Filters that look at models."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"preflight_models": preflight_models}
