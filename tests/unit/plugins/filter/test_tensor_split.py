# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.tensor_split import FilterModule, tensor_split


@pytest.mark.parametrize(
    ("program", "text"), [("llama_bench", "45/36/0"), ("llama_server", "45,36,0"), ("llama_fit_params", "45,36,0")]
)
def test_each_program_gets_its_own_form(program: str, text: str) -> None:
    assert FilterModule().filters()["tensor_split"]([45, 36, 0], program) == text


def test_an_unknown_program_is_told_which_are_known() -> None:
    with pytest.raises(AnsibleFilterError, match="'vllm': known are llama_bench, llama_fit_params, llama_server"):
        tensor_split([45, 36], "vllm")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("45,36", "must be a list"),
        ([], "must be a list"),
        (None, "must be a list"),
        ([45, 36.0], "whole numbers"),
        ([True, 36], "whole numbers"),
        ([45, -1], "whole numbers"),
        ([0, 0], "at least one device"),
    ],
)
def test_what_is_no_split(layers: t.Any, message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        tensor_split(layers, "llama_server")
