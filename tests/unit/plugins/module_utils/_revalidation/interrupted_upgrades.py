# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Records of upgrades that were interrupted in each stage."""

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import upgrade_stages as stages

NOW, LATER = "2026-11-25T12:00:00Z", "2026-11-25T13:00:00Z"
OK = {"verdict": "ok", "accepted": True, "summary": "as on 2026-11-24."}
SLOW = {"verdict": "regressed", "accepted": False, "summary": "regressed: decode: 41.0 % more time."}
OLD = {"version": "b11312", "builds": {"main": "b11312-0a", "slow": "b11312-0b"}}
NEW = {"version": "b11400", "builds": {"main": "b11400-1a", "slow": "b11400-1b"}}
OTHER = {"version": "b11500", "builds": {"main": "b11500-2a", "slow": "b11500-2b"}}
HALF = {"version": "b11400", "builds": {"main": "b11400-1a", "slow": "b11312-0b"}}
ASKED = {"version": "b11400", "sha256": ""}
BACK = ("rolling_back", "proving")


def ends(present, wanted, *lenders):
    """What this host has and is to have, and what its lenders have and are to have."""
    return [stages.Ends(name, present, wanted) for name in ("box", *lenders)]


def at(stage, asked=None, lenders=()):
    """A record of an upgrade that was interrupted in this stage; lenders have the builds of the box."""
    record = stages.begin(stages.empty(), "llama_cpp", ends(OLD, NEW, *lenders), asked or ASKED, OK, NOW)
    ways = {
        "building": [],
        "installing": ["installing"],
        "revalidating": ["installing", "revalidating"],
        "keeping": ["installing", "revalidating", "keeping"],
        "rolling_back": ["installing", "revalidating", "rolling_back"],
        "proving": ["installing", "revalidating", "rolling_back", "proving"],
    }
    for step in ways[stage]:
        record = stages.advance(record, step, LATER, {"keeping": OK, "rolling_back": SLOW}.get(step))
    assert record["under_way"]["stage"] == stage
    return record
