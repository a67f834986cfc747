# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a placement with experts in RAM costs in time. Private to this collection. Pure functions only.

Cards and CPU take turns, and nothing is pipelined (llama.cpp switches that off where tensors are placed by hand):

- decode: t = sum(base_d * card_d) + each * cpu, where card_d is what a card reads of the model, weighed by how slow the
  card is, and cpu the blocks' worth of experts that the CPU reads. Measured on two H200: linear within 4 %.
- prefill: every micro-batch copies the experts in RAM once over the first device's link, whatever it holds besides:
  t = m * start + tokens * sum(work_d * compute_d) + m * copies * copy + tokens * copies * handle, with m micro-batches.
  Measured on the same pair, copies take longer with larger micro-batches, which is what C(handle) is for.
- outside of pinned memory the CPU's and the copies' time per block is another one, and nothing else changes.

Both are fitted by least squares of relative errors with a broad prior, so that one load gives a first answer. How slow
cards are against each other is part of the prior: splits that were measured tell more.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from .._base import least_squares
from .._split import cost_model, expert_placement, known_devices, layer_weights, model_weights
from .._split.expert_placement import ExpertPlacement
from .._split.split_problem import Problem
from . import fit_draws

#: Before anything tells more: the share of a token's time that is not the CPU's, and its standard deviation.
BASE_SHARE: t.Final = (0.2, 0.15)
#: How far the base may be off where the bandwidth of all cards is known (relative standard deviation).
BANDWIDTH_ERROR: t.Final = 0.35
#: Likewise what cards compute of a prompt: a small model's rate is not that of a large one.
COMPUTE_ERROR: t.Final = 0.4
#: How far one card may be from the others, where its speed is known by name or probe, and where nothing is known.
KNOWN_RATIO: t.Final = 0.2
OPEN_RATIO: t.Final = 0.7
#: Shares of a micro-batch's time: start, copy, handle, compute. Each is its own error.
PREFILL_SHARES: t.Final = (0.06, 0.64, 0.18, 0.12)
#: How far the CPU's time per block may be another one outside of pinned memory (relative standard deviation).
UNPINNED_CPU: t.Final = 0.2
#: What a copy from there takes more (mean, deviation): it goes through a pinned buffer, so it is never faster.
UNPINNED_COPY: t.Final = (0.5, 1.0)
#: The least that a card costs, in what is thought of all before.
LEAST_OF_CARD: t.Final = 0.02
#: How well a point of a fit is known (relative standard deviation) before two loads say it.
POINT_NOISE: t.Final = 0.02


class Point(t.NamedTuple):
    """One measured time: what it is explained by, and how long it took."""

    features: tuple[float, ...]
    ms: float


class Belief(t.NamedTuple):
    """What is known of coefficients before: a sum of them, and its standard deviation."""

    features: t.Sequence[float]
    value: float
    deviation: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """Coefficients in the order of the features that they belong to, and others that points and beliefs allow."""

    coefficients: tuple[float, ...]
    draws: tuple[tuple[float, ...], ...]

    def ms(self, features: t.Sequence[float]) -> float:
        """Return the expected time."""
        return cost_model.decode_ms(self.coefficients, features)


@dataclasses.dataclass(frozen=True)
class Amounts:
    """What a placement holds where, see above."""

    cards: tuple[float, ...]
    works: tuple[float, ...]
    cpu: float
    unpinned: float

    @property
    def decode(self) -> tuple[float, ...]:
        """What decoding is explained by: blocks in pinned memory, blocks outside of it, cards."""
        return self.cpu - self.unpinned, self.unpinned, *self.cards

    def prefill(self, prompt: int, micro_batch: int) -> tuple[float, ...]:
        """Return what a prompt is explained by: start, copy, handle, copy outside of pinned memory, cards."""
        batches, tokens = cost_model.micro_batches(prompt, micro_batch), prompt / 1000
        cards = (tokens * work for work in self.works)
        return batches, batches * self.cpu, tokens * self.cpu, batches * self.unpinned, *cards


class Weigher:
    """Works out the amounts of placements of one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        model = problem.memory.model
        self.read = model_weights.bytes_read(model, problem.memory.serving, problem.tested_depth)
        self.work = [float(value) for value in model.get("block_weights") or model["block_bytes"]] + [0.0]
        sizes = expert_placement.parts_of(model).values()
        blocks = [sum(own) for own in zip(*sizes, strict=True) if any(own)]
        self.block_bytes = sum(blocks) / len(blocks) if blocks else 1.0
        self.used = expert_placement.share_used(model)
        speeds = {kind: self._probed(kind) or self.card_speeds(kind) for kind in ("decode", "prefill")}
        #: Bytes that each device reads in a ms, weights that it multiplies with a token in a ms; None where unknown.
        self.speeds = speeds
        self.rates = {kind: layer_weights.relative(self._slowness(kind)) for kind in speeds}
        self._known: dict[ExpertPlacement, Amounts] = {}

    def _slowness(self, kind: str) -> list[float]:
        """Return how slow each device is, in any unit: by the probe, by what is known of the card, or all the same."""
        probed = self.problem.probed.get(kind)
        if probed:
            return list(probed)
        known = self.speeds[kind]
        return [1 / speed for speed in known] if known else [1.0] * len(self.problem.names)

    def ratio_error(self, kind: str) -> float:
        """Return how far one card's cost may be from what C(rates) say of it, relatively."""
        return KNOWN_RATIO if self.problem.probed.get(kind) or self.speeds[kind] else OPEN_RATIO

    def _probed(self, kind: str) -> list[float] | None:
        """Return the speeds of the devices by the probe, whose model has about a byte per weight; None without one."""
        costs = self.problem.probed.get(kind)
        amount = (self.problem.raw.get("device_probe") or {}).get("weights_bytes")
        return [amount / ms for ms in costs] if costs and amount else None

    def card_speeds(self, kind: str) -> list[float] | None:
        """Return bytes (decode) or weights (prefill) per ms of each card, or None where one is not known."""
        raw = [{"id": device["device"], **device} for device in self.problem.raw["devices"]]
        speeds = []
        for device in known_devices.host_devices(raw, []):
            rate = device["bandwidth_gb_per_s"] if kind == "decode" else device["prefill_tflops"]
            # two operations per weight
            speeds.append((rate or 0) * (1e6 * device["fraction"] if kind == "decode" else 0.5e9))
        return speeds if all(speeds) else None

    def amounts(self, placement: ExpertPlacement) -> Amounts:
        """Return the amounts of a placement."""
        plain = dataclasses.replace(placement, threads=0)
        if plain not in self._known:
            self._known[plain] = self._amounts(plain)
        return self._known[plain]

    def _amounts(self, placement: ExpertPlacement) -> Amounts:
        in_ram = [*expert_placement.block_ram_bytes(self.problem.memory.model, placement), 0]
        cards, works = [0.0] * len(placement.layers), [0.0] * len(placement.layers)
        start, last = 0, len(in_ram) - 1
        first = next(device for device, count in enumerate(placement.layers) if count)
        for device, count in enumerate(placement.layers):
            own = slice(start, start + count)
            start += count
            on_card = sum(self.read[own]) - self.used * sum(in_ram[own])
            cards[device] = self.rates["decode"][device] * max(0.0, on_card) / sum(self.read)
            # a prompt's experts that are in RAM are computed by the first device
            away = sum(self.expert_work(block, in_ram[block]) for block in range(start - count, min(start, last)))
            works[device] += self.rates["prefill"][device] * (sum(self.work[own]) - away)
            works[first] += self.rates["prefill"][first] * away
        blocks = sum(in_ram) / self.block_bytes
        whole = max(1.0, sum(self.work))
        unpinned = blocks if placement.no_host else 0.0
        return Amounts(tuple(cards), tuple(work / whole for work in works), blocks, unpinned)

    def expert_work(self, block: int, in_ram: int) -> float:
        """Return the weights that one token is multiplied with in so many bytes of a block's experts."""
        return self.work[block] * min(1.0, self.used * in_ram / max(1.0, self.read[block]))

    def base_ms(self) -> float | None:
        """Return what a token would take with the whole model on the cards, by their bandwidth; None if unknown."""
        speeds = self.speeds["decode"]
        return None if speeds is None else sum(self.read) * _mean_time(speeds)

    def compute_ms(self) -> float | None:
        """Return what 1000 tokens of a prompt take to compute on average cards; None if unknown."""
        speeds = self.speeds["prefill"]
        return None if speeds is None else 1000 * sum(self.work) * _mean_time(speeds)

    def copy_ms(self) -> float | None:
        """Return what the copy of a block's experts takes over the first device's link; None if it is not known."""
        links = (self.problem.raw.get("experts_in_ram") or {}).get("links_gb_per_s")
        return self.block_bytes / (links[0] * 1e6) if links and links[0] else None


def _mean_time(speeds: t.Sequence[float]) -> float:
    return sum(1 / speed for speed in speeds) / len(speeds)


def fit_decode(points: t.Sequence[Point], weigher: Weigher, noise: float) -> Fit | None:
    """Return the costs of decoding, or None without a point."""
    if not points:
        return None
    typical = max(point.ms for point in points)
    known = weigher.base_ms()
    base = (typical * BASE_SHARE[0], typical * BASE_SHARE[1])
    if known is not None and known < typical:
        base = (known, BANDWIDTH_ERROR * known)
    cpu = max(sum(point.features[:2]) for point in points) or 1.0
    each = max(typical - base[0], 0.1 * typical) / cpu
    beliefs = [Belief([1.0, 0.0], each, 3 * each), Belief([-1.0, 1.0], 0.0, UNPINNED_CPU * each)]
    return _fitted(points, noise, beliefs, base, weigher.ratio_error("decode"))


def fit_prefill(points: t.Sequence[Point], weigher: Weigher, noise: float) -> Fit | None:
    """Return the costs of a prompt, or None without a point."""
    if not points:
        return None
    typical = points[0]
    works = sum(typical.features[4:])
    *means, base = (
        share * typical.ms / feature if feature else 0.0
        for share, feature in zip(PREFILL_SHARES, (*typical.features[:3], works), strict=True)
    )
    copy = weigher.copy_ms()
    if copy is not None and copy * typical.features[1] < typical.ms:
        # what a link says is the least that a copy takes
        means[1] = max(copy, (means[1] + copy) / 2)
    compute = weigher.compute_ms()
    if compute is not None and compute * works < typical.ms:
        error = COMPUTE_ERROR
        base = compute
    else:
        error = 1.0
    unpinned = (UNPINNED_COPY[0] * means[1], UNPINNED_COPY[1] * means[1])
    priors = [*((mean, mean) for mean in means), unpinned]
    beliefs = [
        Belief([float(i == j) for j in range(len(priors))], mean, max(deviation, 1e-9))
        for i, (mean, deviation) in enumerate(priors)
    ]
    return _fitted(points, noise, beliefs, (base, error * base), weigher.ratio_error("prefill"))


def _fitted(
    points: t.Sequence[Point],
    noise: float,
    beliefs: t.Sequence[Belief],
    card: tuple[float, float],
    ratio_error: float,
) -> Fit:
    """Return the costs of least relative squares, none negative.

    C(beliefs) are of what comes before the cards. C(card): the mean of the cards' costs, and its standard deviation;
    C(ratio_error): how far one may be from it, relatively.
    """
    before = len(beliefs)
    count = len(points[0].features) - before
    mean, deviation = card
    prior = [Belief([*belief.features, *[0.0] * count], belief.value, belief.deviation) for belief in beliefs]
    prior.append(Belief([0.0] * before + [1 / count] * count, mean, max(deviation, 1e-9)))
    for device in range(count):
        apart = [(other == device) - 1 / count for other in range(count)]
        prior.append(Belief([0.0] * before + apart, 0.0, max(ratio_error * mean, 1e-9)))
    error = max(noise, 1e-3)
    rows = [([value / point.ms / error for value in point.features], 1 / error) for point in points]
    rows += [
        ([value / belief.deviation for value in belief.features], belief.value / belief.deviation)
        for belief in prior
    ]
    least = [*[0.0] * before, *[LEAST_OF_CARD * mean] * count]
    free = list(range(before + count))
    while True:
        values, draws = _solved(rows, free, least)
        worst = min(free, key=lambda index: values[index] - least[index], default=None)
        if worst is None or values[worst] >= least[worst]:
            break
        free.remove(worst)
    return Fit(tuple(values), tuple(tuple(map(max, draw, least)) for draw in draws))


def _solved(
    rows: t.Sequence[tuple[list[float], float]], free: t.Sequence[int], least: t.Sequence[float]
) -> tuple[list[float], list[list[float]]]:
    """Return coefficients of least squares, and draws of what the rows allow; those not in C(free) are C(least)."""
    size = range(len(free))
    fixed = [value * (index not in free) for index, value in enumerate(least)]
    rest = [value - cost_model.decode_ms(fixed, row) for row, value in rows]
    matrix = [[sum(row[i] * row[j] for row, _value in rows) for j in free] for i in free]
    right = [sum(row[i] * value for (row, _value), value in zip(rows, rest, strict=True)) for i in free]
    scale = [math.sqrt(matrix[i][i]) for i in size]
    lower = least_squares.cholesky([[matrix[i][j] / scale[i] / scale[j] for j in size] for i in size])
    half = least_squares.solve_lower(lower, [right[i] / scale[i] for i in size])
    solved = least_squares.solve_transposed(lower, half)

    def placed(values: t.Sequence[float]) -> list[float]:
        known = {index: value / own for index, value, own in zip(free, values, scale, strict=True)}
        return [known.get(index, value) for index, value in enumerate(fixed)]

    moves = [least_squares.solve_transposed(lower, vector) for vector in fit_draws.normal(len(free))]
    return placed(solved), [placed([a + b for a, b in zip(solved, move, strict=True)]) for move in moves]
