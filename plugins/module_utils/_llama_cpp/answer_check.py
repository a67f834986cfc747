# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a placement computes what one device alone computes. Private to this collection. Pure functions only.

Devices that exchange data wrongly answer with garbage at full speed. So the placement, and each device alone with what
does not fit in host memory, give the likeliest next tokens at the same places: in a fixed text, and along the answer
that the placement itself generated. One position is a list of C((token id, log-probability)), the likeliest first.

Two right devices differ by rounding: another order of sums, flash attention, kernels for other generations of cards,
all-reduces in BF16. That moves a log-probability by some percent of what candidates differ by. Garbage moves it by
100 % and more. docs/decisions/0035-answers.md has the figures.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing as t

from .._base.types import Json, Mapping

Top = t.Sequence[tuple[int, float]]

#: Who gives probabilities that are no numbers, where it is no device.
PLACEMENT: t.Final = "placement"
#: The host's CPU, where ids of devices stand.
PROCESSOR: t.Final = "CPU"
#: Candidates per position.
CANDIDATES: t.Final = 64
#: A token is nearly the first choice if it is at least so many times as likely.
NEARLY: t.Final = 0.25
#: How far log-probabilities may be apart, in percent of what the candidates of a token differ by.
TOLERANCE_PERCENT: t.Final = 15.0
#: Largest difference that is told.
MOST_PERCENT: t.Final = 999.0
#: Less likely than that is as good as impossible: e^-60.
_LEAST: t.Final = -60.0
_FLAT: t.Final = 1e-6


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one device, or the placement, says: positions in the text, and along the placement's answer."""

    text: t.Sequence[Top]
    own: t.Sequence[Top]

    @property
    def positions(self) -> list[Top]:
        """All of them."""
        return [*self.text, *self.own]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two differ; C(share) is how likely the answer's worst token is beside the first choice."""

    difference_percent: float
    share: float
    place: int
    agrees: bool


def parse(answer: Mapping) -> Top:
    """Return the candidates of the one token of an answer of llama-server's /completion with n_probs.

    Raises ValueError with a clause where there are none, or values are no numbers (NaN).
    """
    listed = answer.get("completion_probabilities") or [{}]
    top = []
    for candidate in listed[0].get("top_logprobs") or []:
        value = candidate.get("logprob")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError("gives probabilities that are no numbers (NaN)")
        top.append((int(candidate["id"]), max(_LEAST, float(value))))
    if not top:
        raise ValueError("gives no probabilities")
    return top


def is_flat(positions: t.Iterable[Top]) -> bool:
    """Return whether all candidates are equally likely everywhere: the sums were zeros."""
    return all(top[0][1] - top[-1][1] < _FLAT for top in positions)


def difference_percent(one: t.Sequence[Top], other: t.Sequence[Top]) -> float:
    """Return how far the log-probabilities of two devices are apart, in percent of what candidates differ by.

    It is the root of the mean square over all positions. A candidate that one side does not list is at most as likely
    as its last one. The measure has no unit, so it is the same for a model that is sure and one that is not.
    """
    squares = spread = 0.0
    for left, right in zip(one, other, strict=True):
        mine, theirs = dict(left), dict(right)
        for token in mine.keys() | theirs.keys():
            squares += _distance(mine.get(token), theirs.get(token), left[-1][1], right[-1][1]) ** 2
        spread += (_spread(left) + _spread(right)) / 2
    if squares == 0:
        return 0.0
    return MOST_PERCENT if spread == 0 else min(MOST_PERCENT, 100 * math.sqrt(squares / spread))


def _distance(mine: float | None, theirs: float | None, my_last: float, their_last: float) -> float:
    """Return how far two log-probabilities are apart at least; None for one that is not listed."""
    if mine is None:
        return max(0.0, t.cast(float, theirs) - my_last)
    if theirs is None:
        return max(0.0, mine - their_last)
    return mine - theirs


def _spread(top: Top) -> float:
    mean = sum(value for _token, value in top) / len(top)
    return sum((value - mean) ** 2 for _token, value in top)


def least_share(tokens: t.Sequence[int], positions: t.Sequence[Top]) -> tuple[float, int]:
    """Return (how likely the worst of the tokens is beside the first choice at its place, that place).

    1.0 means that each token is the first choice. A token that is not listed is at most as likely as the last one.
    """
    shares = []
    for token, top in zip(tokens, positions, strict=True):
        value = dict(top).get(token, top[-1][1])
        shares.append(math.exp(value - top[0][1]))
    return min((share, place) for place, share in enumerate(shares))


def compare(tokens: t.Sequence[int], reference: Answers, other: Answers, tolerance_percent: float) -> Agreement:
    """Return how far C(other) is from C(reference), which scores the placement's C(tokens)."""
    apart = difference_percent(reference.positions, other.positions)
    share, place = least_share(tokens, reference.own)
    return Agreement(round(apart, 2), round(share, 4), place, apart <= tolerance_percent and share >= NEARLY)


def how_far(found: Mapping) -> str:
    """Return how far two differ, as a clause; C(found) has the fields of an Agreement."""
    return (
        f"log-probabilities differ by {found['difference_percent']:g} %, and token {found['place'] + 1} of the answer"
        f" is {found['share']:g} times as likely as the first choice"
    )


# --- who is wrong ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was asked: the placement, each device alone by its id, and the host's CPU where somebody disagreed.

    Where no device could be asked, the CPU (PROCESSOR) stands among those alone.
    """

    tokens: t.Sequence[int]
    placement: Answers
    alone: Mapping
    processor: Answers | None = None


def disagreeing(seen: Seen, tolerance_percent: float) -> list[str]:
    """Return the ids of the devices that disagree with the placement."""
    return [
        name
        for name, answers in seen.alone.items()
        if not compare(seen.tokens, answers, seen.placement, tolerance_percent).agrees
    ]


def suspicious(seen: Seen, tolerance_percent: float) -> bool:
    """Return whether the placement disagrees with a device, or says nothing at all."""
    return is_flat(seen.placement.positions) or bool(disagreeing(seen, tolerance_percent))


def culprits(seen: Seen, tolerance_percent: float) -> list[str] | None:
    """Return the ids of the devices that compute wrong; none of them means the way between them; None is unknown.

    The CPU decides where it was asked: it takes no part in the placement. Without it two devices cannot be told apart,
    as the wrong one spoils the placement too; of more, one that disagrees with all others, which agree, is wrong.
    """

    def agree(one: Answers, other: Answers) -> bool:
        return difference_percent(one.positions, other.positions) <= tolerance_percent

    alone = dict(seen.alone)
    if seen.processor is not None:
        wrong = [name for name, answers in alone.items() if not agree(seen.processor, answers)]
        if len(wrong) < len(alone) or agree(seen.processor, seen.placement):
            return wrong
    apart = [pair for pair in itertools.combinations(alone, 2) if not agree(alone[pair[0]], alone[pair[1]])]
    if not apart:
        return [] if len(alone) > 1 else None
    odd = set(apart[0]).intersection(*apart)
    return sorted(odd) if len(odd) == 1 and len(alone) > 2 and len(apart) == len(alone) - 1 else None


def exchange_cures(deployment: Mapping) -> list[str]:
    """Return what is known to garble data between devices, each with the switch that cures it."""
    environment, tensor = deployment["environment"], deployment["split_mode"] == "tensor"
    backends = {device["backend"] for device in deployment["devices"]}
    cures = []
    if "RPC" in backends:
        cures.append("an RPC server of another build: build llama.cpp again on every host (role llama_cpp)")
    if "CUDA" not in backends:
        return cures
    if "GGML_CUDA_P2P" in environment:
        cures.append("peer access that the cards lack: no GGML_CUDA_P2P in split_tuning_environment (0 enables it)")
    if tensor and environment.get("NCCL_P2P_DISABLE") != "1":
        cures.append("peer access of NCCL: NCCL_P2P_DISABLE: '1' in split_tuning_environment")
    if tensor:
        cures.append("an all-reduce with a fault: GGML_CUDA_ALLREDUCE: none in split_tuning_environment, or layer mode")
    return [
        *cures,
        "peer copies: GGML_CUDA_NO_PEER_COPY: true in llama_cpp_cmake_options",
        "an IOMMU or PCIe ACS in the way: iommu=pt on the kernel's command line, or ACS off in the firmware",
        "the driver: homelab.mixed_gpu.driver_rollback",
    ]


_CARD_CURES: t.Final = (
    "overclocking or a low voltage: set the card's clocks back",
    "faulty memory or a loose card: reseat it, see homelab.mixed_gpu.diagnose and the kernel's log for Xid",
    "the driver: homelab.mixed_gpu.driver_rollback",
)
_RPC_CURES: t.Final = ("a faulty build or host: build llama.cpp again on the host of the RPC server (role llama_cpp)",)


def _named(deployment: Mapping, name: str) -> str:
    device = next((one for one in deployment["devices"] if one["id"] == name), None)
    if device is None or device["description"] == name:
        return name
    return f"{device['description']} ({name})"


def judge(deployment: Mapping, seen: Seen, failures: Mapping, tolerance_percent: float) -> Json:
    """Return C({status, reason, culprits, cures, compared}) of a check.

    C(failures) are the TrialErrors of those that could not compute the model alone, by id. The status is ok, wrong,
    unknown where nobody could be asked, or incomparable where asking again is of no use: there is no other device, or
    memory is missing for each.
    """
    compared = []
    for name, answers in seen.alone.items():
        found = compare(seen.tokens, answers, seen.placement, tolerance_percent)
        compared.append({"id": name, **dataclasses.asdict(found)})
    result: Json = {"status": "ok", "reason": None, "culprits": [], "cures": [], "compared": compared}
    flat = is_flat(seen.placement.positions)
    if not seen.alone and not flat:
        reason = f"nobody could compute the model alone ({why_unasked(deployment, failures)})"
        lasting = set(failures) == {PROCESSOR} or {end.status for end in failures.values()} == {"out_of_memory"}
        return {**result, "status": "incomparable" if lasting else "unknown", "reason": reason}
    if not suspicious(seen, tolerance_percent):
        return result
    wrong = culprits(seen, tolerance_percent)
    used = [place["id"] for place in deployment["placement"] if place["layers"]]
    if len(used) == 1 and (wrong == [] or set(seen.alone) <= {PROCESSOR}):  # nothing is exchanged
        wrong = used
    words = _words(deployment, compared, wrong, flat)
    return {**result, "status": "wrong", "culprits": wrong or [], **words}


def why_unasked(deployment: Mapping, failures: Mapping) -> str:
    """Return who could not be asked, and why; C(failures) as of judge."""
    return "; ".join(f"{_named(deployment, name)}: {end.reason}" for name, end in failures.items())


def no_numbers(deployment: Mapping, who: t.Sequence[str], sane: t.Sequence[str]) -> Json:
    """Return the result where probabilities are no numbers: C(who) gives them (PLACEMENT or ids), C(sane) does not."""
    wrong = [name for name in who if name not in (PLACEMENT, "CPU")]
    names = " and ".join(_named(deployment, name) for name in wrong)
    reason = f"{names or 'the placement'} gives probabilities that are no numbers (NaN)"
    cures = _device_cures(deployment, wrong) if wrong or not sane else exchange_cures(deployment)
    return {"status": "wrong", "reason": reason, "culprits": wrong, "cures": cures, "compared": []}


def sentence(deployment: Mapping, found: Mapping, failures: Mapping) -> str:
    """Return what a result of judge means, with the cures of a wrong one; without a full stop."""
    if found["status"] == "unknown":
        return f"not compared: {found['reason']}"
    if found["status"] == "incomparable":
        return f"there is nothing to compare the placement with: {found['reason']}"
    if found["status"] == "wrong":
        cures = "; ".join(found["cures"]) or "none is known"
        return f"{found['reason']}. Known causes and cures: {cures}. The server stays off until a check finds it right"
    most = max(one["difference_percent"] for one in found["compared"])
    count = len(found["compared"])
    one = "the CPU" if found["compared"][0]["id"] == PROCESSOR else "a device"
    each = f"{count} devices compute alone" if count > 1 else f"{one} computes alone"
    unasked = f"; not asked were {why_unasked(deployment, failures)}" if failures else ""
    return f"the placement computes what {each}: {most:g} % apart{unasked}"


def _device_cures(deployment: Mapping, wrong: t.Sequence[str]) -> list[str]:
    cuda = any(one["backend"] == "CUDA" for one in deployment["devices"] if one["id"] in wrong or not wrong)
    return list(_CARD_CURES if cuda else _RPC_CURES)


def _words(deployment: Mapping, compared: t.Sequence[Json], wrong: t.Sequence[str] | None, flat: bool) -> Json:
    """Return reason and cures; C(wrong) as of culprits, C(flat) as of is_flat."""
    apart = max(compared, key=lambda one: (not one["agrees"], one["difference_percent"]), default=None)
    how = "the placement gives each token the same probability" if flat or apart is None else how_far(apart)
    other = _named(deployment, apart["id"]) if apart else PROCESSOR
    if wrong:
        names = " and ".join(_named(deployment, name) for name in wrong)
        return {"reason": f"{names} computes wrong: {how}", "cures": _device_cures(deployment, wrong)}
    if wrong is None:
        cures = [*exchange_cures(deployment), *_CARD_CURES[:2]]
        who = f"the placement and {other} alone disagree, either may be wrong"
        if other == PROCESSOR:
            who = "the devices or what is between them compute wrong"
        return {"reason": f"{who}: {how}", "cures": cures}
    reason = f"data between the devices is garbled, as each of them alone computes right ({other}: {how})"
    return {"reason": reason, "cures": exchange_cures(deployment)}
