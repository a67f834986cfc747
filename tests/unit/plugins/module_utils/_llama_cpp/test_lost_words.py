# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import lost_words


@pytest.mark.parametrize(
    ("rc", "text", "lost"),
    [
        (0, "", False),
        (1, "", True),
        # the lines before the failure were printed, and those that name it were not
        (1, "0.00.012.345 I srv    load_model: loading model '/m.gguf'\n", True),
        (1, "0.00.012.345 E llama_init_from_model: V cache quantization requires flash_attn\n", False),
        (1, "error: invalid argument: -x\n", False),
        # killed, or aborted: what abort() has to say is printed at once
        (-9, "", False),
        (-6, "terminate called without an active exception\n", False),
    ],
)
def test_a_failure_without_a_complaint_lost_its_words(rc: int, text: str, lost: bool) -> None:
    assert lost_words.lost(rc, text) is lost


@pytest.mark.parametrize(
    ("mute", "starts", "stderr"), [(0, 1, "error: no\n"), (1, 2, "error: no\n"), (99, lost_words.STARTS, "")]
)
def test_a_program_is_run_until_it_says_why(tmp_path: pathlib.Path, mute: int, starts: int, stderr: str) -> None:
    log = tmp_path / "log"
    script = f"echo x >> {log}; [ $(wc -l < {log}) -le {mute} ] || echo error: no >&2; exit 1"
    ended = lost_words.run(["sh", "-c", script], sandboxed_run.Sandbox(), {}, 60)
    assert (ended.rc, ended.stderr, len(log.read_text().split())) == (1, stderr, starts)
