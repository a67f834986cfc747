# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: split_prediction_table
short_description: Show a prediction as lines of text
version_added: 0.1.0
description:
  - What was asked, one line per split with the MiB of each device, what is left of its free memory, and the predicted
    speed; then the predicted best in one sentence, and the source of every number.
options:
  _input:
    description: What P(homelab.mixed_gpu.split_prediction#filter) returns.
    type: dict
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show the prediction
  ansible.builtin.debug:
    msg: "{{ prediction | homelab.mixed_gpu.split_prediction_table }}"
"""

RETURN = r"""
_value:
  description: The lines.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import predictor


def split_prediction_table(prediction: t.Mapping[str, t.Any]) -> list[str]:
    """Return the prediction as lines. Raises AnsibleFilterError when it is none."""
    try:
        return predictor.table(prediction)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"split_prediction_table: the input is no prediction ({error!r}); pass on what split_prediction returns."
        ) from error


class FilterModule:
    """Filters that speak."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"split_prediction_table": split_prediction_table}
