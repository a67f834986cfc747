"""An upgrade that made a host slower is rolled back, and the fleet goes no further."""

from __future__ import annotations

import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab


@pytest.fixture
def fleet(tmp_path):
    return lab.fleet(tmp_path)


def test_a_slower_build_is_rolled_back_and_the_next_host_is_not_touched(host, upgrades, fleet):
    before = upgrades.links()
    done = upgrades.run(lab.SLOWER, fleet)
    assert done.returncode == 2, done.stdout[-6000:]
    ended = upgrades.last()
    slower = ended["to"]["builds"]["slow"]
    assert (ended["outcome"], ended["verdicts"]["after"]["verdict"]) == ("rolled_back", "regressed"), ended
    assert ended["verdicts"]["back"]["accepted"], ended
    assert slower != before["slow"] and host.file(f"/opt/llama.cpp/{slower}/build.json").exists
    # both verdicts in one sentence
    assert re.search(r"was not accepted \(regressed .*\), and .* is in use again, as before \(", lab.said(done))
    assert "sandbox" in lab.recap(done) and "second" not in lab.recap(done), lab.recap(done)
    assert upgrades.serves(before)
