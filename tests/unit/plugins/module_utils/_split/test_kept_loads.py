# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import kept_loads

ENTRY = {
    "fingerprint": "now", "campaign": "after nothing", "recorded_at": "2026-11-24T04:35:00Z",
    "device_probe": {"fingerprint": "probe", "campaign": "after 2026-01-01T00:00:00Z"},
}  # fmt: skip
RECORD = {"models": {"a": ENTRY, "b": {**ENTRY, "fingerprint": "other", "device_probe": None}}}
BASELINE = {"loads": [{"fingerprint": "now", "campaign": "revalidation of box 2026-11-25T00:00:00Z"}]}
NEEDED = [
    ("now", "after nothing"),                                    # the tunings that the record holds
    ("other", "after nothing"),
    ("probe", "after 2026-01-01T00:00:00Z"),                     # the probe that the next tuning takes over
    ("now", "revalidation of box 2026-11-25T00:00:00Z"),         # an accepted revalidation
    ("changed", "after 2026-11-24T04:35:00Z"),                   # a retune that was interrupted
    ("now", "power sweep 2026-11-24T04:35:00Z again 2026-11-26T00:00:00Z"),
]


def _stored(groups, start=0):
    return [
        kept_loads.Stored(f"{start + number}{load}.json", *group, written_ns=10 * (start + number) + load)
        for number, group in enumerate(groups)
        for load in range(2)
    ]


def test_what_is_referred_to_stays_however_old_it_is():
    newer = _stored([("later", f"revalidation of box {day}") for day in range(30)], 100)
    gone = kept_loads.superfluous([*_stored(NEEDED), *newer], RECORD, [BASELINE], 1)
    assert gone == sorted(one.name for one in newer[:-2])


def test_the_newest_of_the_others_stay_whole():
    # one name with another fingerprint is another campaign: "after nothing" of settings that were given up
    others = _stored([("given up", "after nothing"), ("now", "revalidation 1"), ("now", "revalidation 2")])
    assert kept_loads.superfluous(others, RECORD, [BASELINE], 3) == []
    assert kept_loads.superfluous(others, RECORD, [BASELINE], 2) == ["00.json", "01.json"]
    assert len(kept_loads.superfluous(others, RECORD, [], 1)) == 4


def test_the_newest_campaign_always_stays_since_it_may_go_on():
    (one, other) = _stored([("first", "after nothing")])
    empty = {"models": {}}
    assert kept_loads.superfluous([one, other], empty, [], 0) == []
    assert kept_loads.superfluous([], empty, [], 5) == []


def test_damaged_files_count_one_by_one():
    damaged = [kept_loads.Stored(f"x.json.damaged-{n}", f"x.json.damaged-{n}", "", n) for n in range(5)]
    assert kept_loads.superfluous(damaged, RECORD, [], 2) == [f"x.json.damaged-{n}" for n in range(3)]
