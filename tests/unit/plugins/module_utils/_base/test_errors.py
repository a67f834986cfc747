# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a module says of settings that lack something, and of a host that refuses."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError, explained


@pytest.mark.parametrize(("error", "said"), [
    (KeyError("prefix"), "The settings lack 'prefix': pass all variables of the role llama_cpp."),
    (OSError(2, "Not there", "/a"), "It cannot be built (/a: Not there); correct that, and run the play as root."),
    (OSError("full"), "It cannot be built (full); correct that, and run the play as root."),
    (UserError("as it is"), "as it is"),
])  # fmt: skip
def test_cause_and_cure_are_said(error, said):
    with pytest.raises(UserError) as found, explained("llama_cpp", "It cannot be built"):
        raise error
    assert str(found.value) == said
