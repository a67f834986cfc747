# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: model_files
short_description: List the files that models need
version_added: 0.1.0
description:
  - Checks the entries of the role P(homelab.mixed_gpu.llm_models#role) and returns one dict per file.
positional: _input, directory, answers
options:
  _input:
    description: The models, as the variable C(llm_models) lists them.
    type: list
    elements: dict
    required: true
  directory:
    description: Directory on the host for models that are downloaded or generated.
    type: str
    required: true
  answers:
    description:
      - Results of M(homelab.mixed_gpu.hub_files), one per entry from the hub.
    type: list
    elements: dict
    default: []
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show where the models are to lie
  ansible.builtin.debug:
    msg: "{{ llm_models | homelab.mixed_gpu.model_files('/srv/models') | map(attribute='path') }}"
"""

RETURN = r"""
_value:
  description:
    - One dict per file, with C(id), C(kind) (url, path, generate or repo), C(path), C(first), C(model_path), C(gguf),
      C(known), C(url), C(sha256), C(git_sha1), C(size_bytes) and C(generate).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import entries as llm_models
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import transfer


def model_files(entries: t.Any, directory: str, answers: t.Any = ()) -> list[dict[str, t.Any]]:
    """Return one dict per file; AnsibleFilterError with one sentence on an entry that is not understood."""
    try:
        return llm_models.model_files(entries, directory, answers)
    except transfer.DownloadError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filter for the files of models."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"model_files": model_files}
