# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a power supply carries the cards. Private to this collection. Pure functions.

Two questions with two answers. Steady: a card's regulator holds its power limit as an average over about a
millisecond and more, so the sum of the limits in force, with the rest of the machine, is what flows at most for long.
Peaks: for less than a millisecond a card draws more than its limit, whatever the limit is, so the peak does not shrink
with it. Measured figures differ by board and load, so a peak is a range from the lowest to the highest that was found,
and every figure says where it comes from and that this project has not measured it.

Sources beyond those of the figures: power limits act within about a millisecond, and a limit of 230 W did not keep a
supply from tripping where locked clocks of 210 to 1550 MHz did (club-3090, issues 1019 and 814). Intel's ATX 3.0 design
guide has a supply with a 12VHPWR connector stand 200 % of its rating for 100 microseconds, 180 % for 1 ms and 120 % for
100 ms; older ones promise nothing beyond their rating. In a layer split the cards take turns while they generate and
work together in a prompt; tensor parallelism puts the peaks of both at the same moment.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import known_cards

POLICIES = ("warn", "fail", "ignore")


#: For other cards: the smallest and the largest ratio of peak to default limit of the two above, 500/450 and 570/350.
OTHER_LOW, OTHER_HIGH = 500 / 450, 570 / 350
OTHER_SOURCE = "assumed from the ratios of peak to limit of an RTX 4090 and an RTX 3090; unverified"


def for_card(gpu: Mapping, settings: Mapping) -> t.Any:
    """Return what `settings`, by UUID or by the end of the product name, say of a card, or None. UUIDs win."""
    by_id = settings.get(gpu.get("id") or "")
    name = gpu.get("name") or ""
    return by_id if by_id is not None else next(
        (value for key, value in settings.items() if key and name.endswith(key)), None
    )


def card(gpu: Mapping, planned_watts: t.Any) -> Json:
    """Return {name, limit_watts, planned, peak_low_watts, peak_high_watts, source} of one card.

    `gpu` is an entry of gpu_facts, or {name} alone. The limit is the one that the role gpu_power is to set, or the one
    in force. Watts are None where neither NVML nor the table of known cards knows the card. Raises UserError for a
    plan that is no number.
    """
    name = gpu.get("name") or "unnamed card"
    known = known_cards.peak_of(name)
    default = gpu.get("power_limit_default_watts") or (known.limit_watts if known else None)
    limit = gpu.get("power_limit_enforced_watts") or gpu.get("power_limit_watts") or default
    if planned_watts is not None:
        limit = _watts(planned_watts, name)
    default = default or limit
    low = high = None
    if known:
        low, high = known.low_watts, known.high_watts
    elif default:
        low, high = round(default * OTHER_LOW), round(default * OTHER_HIGH)
    if low is not None and high is not None and limit:
        # a card whose limit was raised draws that limit at the very least
        low, high = max(low, round(limit)), max(high, round(limit))
    return {
        "name": name,
        "limit_watts": round(limit) if limit else None,
        "planned": planned_watts is not None,
        "peak_low_watts": low, "peak_high_watts": high, "source": known.source if known else OTHER_SOURCE,
    }


def _watts(value: t.Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"the power limit of {name} is {value!r}: it must be a number of watts") from error


def budget(
    gpus: t.Sequence[Mapping],
    psu_watts: int,
    rest_of_machine_watts: int,
    limits_watts: Mapping | None = None,
    locked_clocks_mhz: Mapping | None = None,
) -> Json:
    """Return what the cards and the rest of the machine need of a power supply.

    `gpus` are entries of gpu_facts, or dicts with a name. `psu_watts` is the supply's rating, 0 where it is not known.
    `limits_watts` and `locked_clocks_mhz`, see for_card, are what the role gpu_power is to set: judging only what is in
    force would stop a play before the role that cures it. Nobody published by how much a locked clock lowers peaks, so
    where all clocks are locked the peaks are no more than possible.

    The result has cards (see card), rest_watts, psu_watts, steady_watts, peak_low_watts, peak_high_watts (all cards at
    once), locked, verdict and advice (sentences). The verdict is

    - exceeded: the limits in force add up to more than the supply's rating;
    - peaks: even the lowest of the figures for the peaks do;
    - peaks_possible: only the highest of them do;
    - ok;
    - unknown: the rating, or the draw of a card, is not known.

    Raises UserError for negative watts.
    """
    if psu_watts < 0 or rest_of_machine_watts < 0:
        raise UserError("the watts of the power supply and of the rest of the machine must be zero or more")
    cards = [card(gpu, for_card(gpu, limits_watts or {})) for gpu in gpus]
    locked = bool(gpus) and all(for_card(gpu, locked_clocks_mhz or {}) for gpu in gpus)
    rest = rest_of_machine_watts
    steady = _sum(cards, "limit_watts", rest)
    low, high = _sum(cards, "peak_low_watts", rest), _sum(cards, "peak_high_watts", rest)
    verdict = "unknown"
    if psu_watts and steady is not None and low is not None and high is not None:
        limits = (("exceeded", steady), ("peaks", low), ("peaks_possible", high))
        verdict = next((name for name, watts in limits if watts > psu_watts), "ok")
        if locked and verdict == "peaks":
            verdict = "peaks_possible"
    result = {
        "cards": cards, "rest_watts": rest, "psu_watts": psu_watts, "steady_watts": steady, "peak_low_watts": low,
        "peak_high_watts": high, "verdict": verdict, "locked": locked,
    }
    return {**result, "advice": _advice(result)}


def _sum(cards: t.Sequence[Json], key: str, rest: int) -> int | None:
    """The sum over all cards and the rest of the machine; None where one card is not known."""
    watts = [each[key] for each in cards]
    return None if None in watts else sum(watts) + rest


def rating_for(watts: int) -> int:
    """The rating to buy for so many watts: the next multiple of 50."""
    return -(-watts // 50) * 50


def _advice(found: Mapping) -> list[str]:
    """What to do, the surest thing first."""
    verdict, psu = found["verdict"], found["psu_watts"]
    if verdict == "ok" or found["steady_watts"] is None:
        return []
    if verdict == "unknown":
        return [f"set gpu_power_psu_watts; {rating_for(found['peak_high_watts'])} W carry every figure that was found"]
    advice = []
    if verdict == "exceeded":
        left = psu - found["rest_watts"]
        advice.append(
            f"lower the cards' power limits to {left} W together"
            if left > 0
            else f"correct gpu_power_rest_of_machine_watts, which alone takes the {psu} W"
        )
    if not found["locked"]:
        advice.append("lock the clocks (gpu_power_locked_clocks_mhz: a lower power limit does not stop peaks)")
    advice += [
        f"or use a supply of {rating_for(found['peak_high_watts'])} W, or one of ATX 3, which stands 200 % for 100"
        " microseconds",
    ]
    return advice


def words(found: Mapping) -> str:
    """One sentence with the numbers of a budget."""
    unknown = [each["name"] for each in found["cards"] if each["limit_watts"] is None]
    if unknown:
        return f"the draw of {' and '.join(unknown)} is not known"
    limits = " + ".join(f"{each['limit_watts']}{' to be set' * each['planned']}" for each in found["cards"])
    of = f" of {found['psu_watts']} W" if found["psu_watts"] else ""
    return (
        f"steady {found['steady_watts']} W{of} (power limits {limits}, rest of the machine {found['rest_watts']}); for"
        f" less than a millisecond {found['peak_low_watts']} to {found['peak_high_watts']} W when all cards peak at"
        f" once{', less what the locked clocks take off' * found['locked']} (unverified figures, see the role's README)"
    )


def severity(verdict: str, policy: str) -> str:
    """Severity of a check for a verdict other than ok: what only the highest figures say is never more than a note.

    Raises UserError for a policy that is not one of POLICIES.
    """
    if policy not in POLICIES:
        raise UserError(f"the policy must be one of {', '.join(POLICIES)}, not {policy!r}")
    if policy == "ignore" or verdict in ("unknown", "peaks_possible"):
        return "note"
    return "error" if policy == "fail" else "warning"
