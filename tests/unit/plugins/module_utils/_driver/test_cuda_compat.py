# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import cuda_compat

UBUNTU = {"system": "Ubuntu 24.04", "gcc": 13, "glibc": "2.39", "driver": "580.95.05"}
RESOLUTE = {"system": "Ubuntu 26.04", "gcc": 15, "glibc": "2.43", "driver": "595.84"}
TRIXIE = {"system": "Debian 13", "gcc": 14, "glibc": "2.41", "driver": "595.71.05"}
BOOKWORM = {"system": "Debian 12", "gcc": 12, "glibc": "2.36", "driver": "580.95.05"}


def choose(system, source="auto", version="13.0", existing=""):
    return cuda_compat.choose(source, version, existing, system)


@pytest.mark.parametrize(
    ("system", "wish", "expected"),
    [
        (UBUNTU, {}, ("nvidia", "13.0")),
        (UBUNTU, {"existing": "12.8"}, ("existing", "12.8")),
        (UBUNTU, {"source": "nvidia", "version": "12.6"}, ("nvidia", "12.6")),
        (UBUNTU, {"source": "wheels"}, ("wheels", "13.0")),
        ({**UBUNTU, "driver": ""}, {}, ("nvidia", "13.0")),
        (TRIXIE, {}, ("wheels", "13.0")),
        ({**TRIXIE, "driver": "550.163.01"}, {}, ("distribution", "12.4")),
        ({**TRIXIE, "driver": ""}, {}, ("distribution", "12.4")),
        (BOOKWORM, {}, ("wheels", "13.0")),
        ({**TRIXIE, "glibc": "2.42"}, {"source": "nvidia", "version": "13.5"}, ("nvidia", "13.5")),
        ({**TRIXIE, "glibc": "2.42"}, {"source": "nvidia", "version": "13.2"}, ("nvidia", "13.2")),
        (RESOLUTE, {"version": ""}, ("nvidia", "13.3")),
        (UBUNTU, {"version": ""}, ("nvidia", "13.0")),
        # by the cards: before Turing no CUDA 13, the RTX 50 series not before 12.8
        ({**UBUNTU, "targets": ["5.2", "7.0"]}, {"version": ""}, ("nvidia", "12.8")),
        ({**UBUNTU, "targets": ["6.0"]}, {"source": "nvidia", "version": ""}, ("nvidia", "12.8")),
        ({**UBUNTU, "targets": ["7.5", "12.0"], "driver": "570.211.01"}, {"version": ""}, ("nvidia", "12.8")),
        ({**BOOKWORM, "targets": ["6.1", "8.9"]}, {"version": ""}, ("nvidia", "12.8")),
        ({**TRIXIE, "targets": ["6.1"], "driver": "550.163.01"}, {"version": ""}, ("distribution", "12.4")),
        ({**TRIXIE, "targets": ["12.0"], "driver": ""}, {"version": ""}, ("wheels", "13.0")),
        ({**UBUNTU, "targets": ["6.1"]}, {"existing": "12.6", "version": ""}, ("existing", "12.6")),
    ],
)
def test_what_is_taken(system, wish, expected):
    assert choose(system, **wish) == expected


@pytest.mark.parametrize(
    ("system", "wish", "words"),
    [
        # from the facts: gcc, glibc and driver, each with a way out that fits this very system
        (TRIXIE, {"source": "nvidia", "version": "12.8"}, ["glibc 2.41", "cuda_toolkit_source to wheels (CUDA 13.0)"]),
        (TRIXIE, {"source": "nvidia", "version": "12.4"}, ["gcc up to 13", "this system has gcc 14", "wheels"]),
        ({**TRIXIE, "driver": "550.163.01"}, {"source": "wheels"}, ["needs driver 580", "to distribution (CUDA 12.4)"]),
        ({**UBUNTU, "driver": "570.211.01"}, {"source": "nvidia"}, ["driver 580", 'cuda_toolkit_version to "12.8"']),
        ({**UBUNTU, "driver": "470.1"}, {}, ["driver 470.1", "newer driver"]),
        ({**UBUNTU, "gcc": 16}, {"source": "wheels"}, ["gcc up to 15", "gcc 16"]),
        (UBUNTU, {"existing": "11.8"}, ["older than 12.4", "cuda_toolkit_source to nvidia"]),
        ({**TRIXIE, "gcc": 14}, {"existing": "12.4"}, ["gcc up to 13"]),
        (UBUNTU, {"source": "existing"}, ["cuda_toolkit_root"]),
        (
            UBUNTU,
            {"source": "distribution"},
            ["Ubuntu 24.04 has no CUDA toolkit from the source distribution", "nvidia"],
        ),
        (UBUNTU, {"source": "nvidia", "version": "thirteen"}, ['is "thirteen", which is no version']),
        ({**UBUNTU, "targets": ["7.0"]}, {"source": "nvidia"}, ["capability 7.0, which ended with 12.9", '"12.8"']),
        ({**UBUNTU, "targets": ["6.1"]}, {"source": "wheels"}, ["13.0 has no target", "cuda_toolkit_source to nvidia"]),
        ({**UBUNTU, "targets": ["5.0"]}, {"existing": "13.1"}, ["CUDA 13.1 has no target", '"12.8"']),
        ({**UBUNTU, "targets": ["12.0"]}, {"source": "nvidia", "version": "12.6"}, ["begins with 12.8", '"13.0"']),
        ({**RESOLUTE, "targets": ["6.1"]}, {"version": ""}, ["install CUDA 12.9 yourself", "cuda_toolkit_root"]),
        (RESOLUTE, {"source": "nvidia"}, ["glibc 2.43", 'cuda_toolkit_version to "13.3"']),
        (RESOLUTE, {"source": "wheels"}, ["Ubuntu 26.04 has no CUDA toolkit from the source wheels", '"13.3"']),
        ({**UBUNTU, "targets": ["3.5", "12.0"]}, {"version": ""}, ["together", "nvidia_driver_slots_left_out"]),
        ({**UBUNTU, "system": "Fedora 43"}, {}, ["Fedora 43 is not known", "cuda_toolkit_root"]),
    ],
)
def test_a_bad_combination_names_a_good_one(system, wish, words):
    with pytest.raises(UserError) as caught:
        choose(system, **wish)
    error = str(caught.value)
    assert error.endswith(".")
    for word in words:
        assert word in error


@pytest.mark.parametrize("system", [UBUNTU, RESOLUTE, TRIXIE, BOOKWORM, {**TRIXIE, "driver": "550.163.01"}])
def test_what_is_advised_is_accepted(system):
    for source, version in cuda_compat.good_ones(system):
        assert choose(system, source=source, version=version) == (source, version)
