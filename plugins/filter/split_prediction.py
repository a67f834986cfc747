# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: split_prediction
short_description: Predict what each split would give, without measuring
version_added: 0.1.0
description:
  - Returns the memory of every split that fits or nearly does, with the speed that memory bandwidth and published
    prompt rates let expect.
  - It is a prediction. It runs no benchmark, needs no lease, and where nothing is known of a device's speed it says so.
positional: _input
options:
  _input:
    description:
      - What is asked - C(model), C(serving) and C(reserve_mib) as in a problem of C(docs/data_formats.md), and
        C(objective) and C(bench) as P(homelab.mixed_gpu.split_workload#filter) takes them.
      - C(model) may also be the name of a well-known shape, such as V(llama_3_3_70b_q4_k_m). An unknown one lists them.
    type: dict
    required: true
  profile:
    description:
      - Cards by name instead of those of a host, in the order of the devices, such as V(rtx4090_rtx3090).
      - An unknown one lists what is known.
    type: str
    default: ""
  recorded:
    description: Devices of an earlier tuning of the host. They win over O(gpus).
    type: list
    elements: dict
    default: []
  gpus:
    description: The cards of the host, as C(gpus) of M(homelab.mixed_gpu.gpu_facts).
    type: list
    elements: dict
    default: []
  budgets_mib:
    description: Memory that may be planned on a device, by its id or name.
    type: dict
    default: {}
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show what two cards would do
  ansible.builtin.debug:
    msg: "{{ (question | homelab.mixed_gpu.split_prediction(profile='rtx4090_rtx3090')).lines }}"
"""

RETURN = r"""
_value:
  description: The prediction, see C(docs/data_formats.md), and the same as C(lines) of text.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import predictor
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import known_devices


def split_prediction(
    question: t.Any,
    profile: str = "",
    recorded: t.Sequence[t.Mapping[str, t.Any]] = (),
    gpus: t.Sequence[t.Mapping[str, t.Any]] = (),
    budgets_mib: t.Mapping[str, t.Any] | None = None,
) -> dict[str, t.Any]:
    """Return the prediction; AnsibleFilterError says what is wrong or unknown."""
    if not isinstance(question, t.Mapping):
        raise AnsibleFilterError(f"split_prediction: the question must be a dict, not {type(question).__name__}.")
    try:
        of_host = known_devices.host_devices(recorded, gpus)
        devices = known_devices.profile_devices(profile) if profile else of_host
        return predictor.predict(question, known_devices.with_budgets(devices, budgets_mib or {}))
    except ValueError as error:
        raise AnsibleFilterError(f"split_prediction: {error}.") from error


class FilterModule:
    """Filters that predict."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"split_prediction": split_prediction}
