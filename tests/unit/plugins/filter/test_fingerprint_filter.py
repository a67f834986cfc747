# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import hashlib

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.split import FilterModule

FINGERPRINT = FilterModule().filters()["fingerprint"]


def test_it_hashes_the_canonical_form():
    assert FINGERPRINT({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()


@pytest.mark.parametrize("parts", [{"a": float("nan")}, "text", None])
def test_what_cannot_be_hashed_is_one_sentence(parts):
    with pytest.raises(AnsibleFilterError, match="homelab.mixed_gpu.fingerprint: "):
        FINGERPRINT(parts)
