# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Settings against cards; and the program itself, against a libnvidia-ml.so.1 compiled for the test."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_limits
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import apply_power_limits
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import HERE, environment

FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"


def card(uuid, name, watts=350.0, **changes):
    return {
        "id": uuid, "name": f"NVIDIA GeForce {name}", "power_limit_watts": watts, "power_limit_min_watts": 100.0,
        "power_limit_max_watts": 366.0, "power_limit_default_watts": 350.0, "clock_graphics_max_mhz": 2100,
        "persistence_mode": True, **changes,
    }  # fmt: skip


BOX = [card("GPU-a", "RTX 4090", 450.0, power_limit_max_watts=600.0), card("GPU-b", "RTX 3090")]


def resolve(limits=None, by_name=None, clocks=None, cards=None):
    return power_limits.settings(cards or BOX, limits or {}, by_name or {}, clocks or {}, True)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (resolve({"GPU-x": 300}), ["GPU-x", "none of this host's cards: GPU-a (NVIDIA GeForce RTX 4090)", "correct"]),
        (resolve({"GPU-b": 400}), ["RTX 3090", "from 100 to 366 W", "400 W", "choose"]),
        (resolve({"GPU-b": 99.9}), ["from 100 to 366 W", "99.9 W"]),
        (resolve({"GPU-b": "much"}), ["'much'", "number of watts"]),
        (resolve({"GPU-b": True}), ["number of watts"]),
        (resolve(clocks={"GPU-b": [1700, 210]}), ["1700 to 210 MHz", "lower one first"]),
        (resolve(clocks={"GPU-b": [210, 9999]}), ["up to 2100 MHz", "stay within"]),
        (resolve(clocks={"GPU-b": 1700}), ["two whole numbers"]),
        (resolve(clocks={"GPU-b": [210, 1700.5]}), ["two whole numbers"]),
    ],
)
def test_what_a_card_does_not_take_is_said_with_the_cure(wanted, words):
    (sentence,) = apply_power_limits.problems(wanted, BOX)
    assert all(word in sentence for word in words), sentence


def test_a_card_without_limits_cannot_be_limited():
    cards = [BOX[1] | {"power_limit_min_watts": None, "power_limit_max_watts": None, "clock_graphics_max_mhz": None}]
    found = apply_power_limits.problems(resolve({"GPU-b": 30}, {}, {"GPU-b": [1, 2]}, cards), cards)
    assert len(found) == 2 and all("take it out" in sentence for sentence in found)


def test_deviations_name_what_is_not_in_force():
    wanted = resolve({"GPU-a": 400, "GPU-b": 350}, {}, {"GPU-b": [210, 1700]})
    cards = [BOX[0] | {"persistence_mode": False}, BOX[1]]
    assert apply_power_limits.deviations(wanted, cards, None) == [
        "persistence mode of NVIDIA GeForce RTX 4090 (GPU-a) is off",
        "power limit of NVIDIA GeForce RTX 4090 (GPU-a) is 450 W, not 400 W",
        "clocks of NVIDIA GeForce RTX 3090 (GPU-b) are not known to be locked to 210 to 1700 MHz",
    ]
    assert apply_power_limits.deviations(resolve({"GPU-b": 350}), BOX[:1], None) == ["GPU-b is not there"]


def test_a_persistence_mode_that_nvml_does_not_know_is_no_deviation():
    cards = [card("GPU-a", "GT 1030", 30.0, persistence_mode=None), card("GPU-b", "RTX 3090", persistence_mode=False)]
    wanted = resolve({"GPU-a": 30.0, "GPU-b": 350})
    found = apply_power_limits.deviations(wanted, cards, None)
    assert found == ["persistence mode of NVIDIA GeForce RTX 3090 (GPU-b) is off"]


def test_a_card_that_is_lost_is_not_a_wrong_uuid():
    wanted = resolve({"GPU-b": 300})
    (sentence,) = apply_power_limits.problems(wanted, BOX[:1], ["RTX 3090 at 0000:41:00.0 (GPU-b)"])
    assert "lost is RTX 3090 at 0000:41:00.0 (GPU-b): power-cycle" in sentence
    assert apply_power_limits.problems(wanted, BOX, ["another"]) == []


def test_what_is_no_longer_asked_for_is_a_deviation():
    record = resolve({"GPU-a": 450, "GPU-b": 350}, {}, {"GPU-b": [210, 1700]})
    assert apply_power_limits.deviations(record, BOX, record) == []
    assert apply_power_limits.deviations(resolve({"GPU-a": 450}), BOX, record) == ["GPU-b still has earlier settings"]
    assert apply_power_limits.leftovers(resolve({"GPU-a": 450, "GPU-b": 350}), record) == ["GPU-b"]


# --- the program -----------------------------------------------------------------------------------------------------


class Box:
    """A machine with a driver: what is set survives the process, and is gone when the driver is loaded anew."""

    def __init__(self, library, directory, extra=""):
        self.state, self.settings, self.record = (directory / name for name in ("state", "settings.json", "run/record"))
        text = (HERE / "profiles" / "swapped_slots.txt").read_text() + f"system.state_file={self.state}\n{extra}"
        self.profile = directory / "profile.txt"
        self.profile.write_text(text)
        self.environment = environment(library, None) | {"FAKE_NVML_PROFILE": str(self.profile)}

    def run(self, action, wanted=None):
        if wanted is not None:
            self.settings.write_text(json.dumps(wanted))
        program = str(pathlib.Path(apply_power_limits.__file__))
        return subprocess.run(
            [sys.executable, program, action, f"--settings={self.settings}", f"--record={self.record}"],
            env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def kept(self):
        return dict(line.split("=") for line in self.state.read_text().splitlines()) if self.state.exists() else {}


@pytest.fixture
def box(library, tmp_path):
    return Box(library, tmp_path)


WANTED = {
    "schema": 1,
    "cards": [
        {"id": FAST, "power_limit_watts": 315, "locked_clocks_mhz": None, "persistence_mode": True},
        {"id": SLOW, "power_limit_watts": 280, "locked_clocks_mhz": [210, 1700], "persistence_mode": True},
    ],
}


def test_the_program_applies_and_undoes(box):
    done = box.run("apply", WANTED)
    assert (done.returncode, done.stderr) == (0, "")
    assert box.kept() == {
        "0.persistence_mode": "1", "0.power_limit_milliwatts": "280000", "0.locked_clocks_mhz": "210,1700",
        "1.persistence_mode": "1", "1.power_limit_milliwatts": "315000",
    }  # fmt: skip
    assert box.run("apply").returncode == 0
    done = box.run("reset")
    assert (done.returncode, done.stderr) == (0, "")
    # without persistence mode, as it was found, the driver keeps nothing
    assert box.kept() == {"0.persistence_mode": "0", "1.persistence_mode": "0"}
    assert not box.record.exists()
    assert box.run("reset").returncode == 0


def test_without_persistence_mode_it_would_be_forgotten(box):
    wanted = {"schema": 1, "cards": [entry | {"persistence_mode": None} for entry in WANTED["cards"]]}
    assert box.run("apply", wanted).returncode == 0
    assert box.kept() == {}


def test_a_wrong_setting_changes_nothing_at_all(box):
    box.run("apply", WANTED)
    before = box.kept()
    right, wrong = WANTED["cards"][0] | {"power_limit_watts": 200}, WANTED["cards"][1] | {"power_limit_watts": 400}
    done = box.run("apply", {"schema": 1, "cards": [right, wrong]})
    assert done.returncode == 1 and "from 100 to 366 W" in done.stderr and "Traceback" not in done.stderr
    assert box.kept() == before


def test_what_is_taken_out_of_the_settings_is_set_back(box):
    box.run("apply", WANTED)
    assert box.run("apply", {"schema": 1, "cards": WANTED["cards"][:1]}).returncode == 0
    kept = box.kept()
    assert kept["1.power_limit_milliwatts"] == "315000"
    assert "0.locked_clocks_mhz" not in kept and kept["0.persistence_mode"] == "0"


def test_a_card_that_refuses_leaves_the_others_as_they_were(library, tmp_path):
    box = Box(library, tmp_path, "0.error.nvmlDeviceSetPowerManagementLimit=4\n")
    done = box.run("apply", WANTED)
    assert done.returncode == 1 and "refuses its power limit" in done.stderr and "run as root" in done.stderr
    kept = box.kept()
    assert "1.power_limit_milliwatts" not in kept and kept["1.persistence_mode"] == "0"
    assert not box.record.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"), ('{"schema": 9, "cards": []}', "not of schema 1"), (None, "There is no"),
        ('{"schema": 1, "cards": [null]}', "has a card that lacks a setting: run the role gpu_power"),
        ('{"schema": 1, "cards": [{"id": "GPU-1", "power_limit_watts": 300}]}', "has a card that lacks a setting"),
    ],
)
def test_damaged_settings_are_named(box, text, words):
    if text is not None:
        box.settings.write_text(text)
    done = box.run("apply")
    assert done.returncode == 1 and words in done.stderr and "role gpu_power" in done.stderr


def test_no_driver_is_one_sentence(box):
    box.settings.write_text(json.dumps(WANTED))
    box.profile.write_text("system.init_error=18\n")
    done = box.run("apply")
    assert done.returncode == 1 and "NVML error 18" in done.stderr and "Traceback" not in done.stderr


def test_the_other_cards_get_their_limits_where_one_is_lost(library, tmp_path):
    box = Box(library, tmp_path, extra="0.error.nvmlDeviceGetHandleByIndex_v2=15\n")
    done = box.run("apply", WANTED)
    # index 0 of the profile is the slow card
    assert done.returncode == 1 and f"{SLOW}, which does not answer; lost is a card" in done.stderr
    assert box.kept() == {"1.persistence_mode": "1", "1.power_limit_milliwatts": "315000"}
    assert [entry["id"] for entry in json.loads(box.record.read_text())["cards"]] == [FAST]


def test_a_mode_that_nvml_does_not_know_is_left_alone(library, tmp_path):
    box = Box(library, tmp_path, extra="1.error.nvmlDeviceGetPersistenceMode=3\n")
    done = box.run("apply", WANTED)
    assert (done.returncode, done.stderr) == (0, "")
    # without persistence mode the driver forgets the rest, as a real one does
    assert "1.persistence_mode" not in box.kept() and box.kept()["0.persistence_mode"] == "1"


def test_a_name_that_is_no_text_is_read_all_the_same(library, tmp_path):
    box = Box(library, tmp_path)
    box.profile.write_bytes(b"0.name=\xf8\x9d\xe2\x80 card\n1.name=\x80\n" + box.profile.read_bytes())
    wanted = {**WANTED, "cards": [{**WANTED["cards"][1], "power_limit_watts": 9000}]}
    refused = box.run("apply", wanted)
    assert refused.returncode == 1 and "\ufffd card" in refused.stderr and "9000 W" in refused.stderr
    assert box.run("apply", WANTED).returncode == 0
