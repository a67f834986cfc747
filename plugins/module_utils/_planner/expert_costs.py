# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a placement with experts in RAM costs in time. Private to this collection. Pure functions only.

Cards and CPU take turns, and nothing is pipelined (llama.cpp switches that off where tensors are placed by hand):

- decode: t = base * card + each * cpu, where card is what the cards read of the model (1 for all of it on an average
  card) and cpu the blocks' worth of experts that the CPU reads. Measured on two H200: linear within 4 %.
- prefill: every micro-batch copies the experts in RAM once over the first device's link, whatever it holds besides:
  t = m * start + tokens * work * compute + copies * (m * copy + tokens * handle), with m micro-batches. Measured on the
  same pair, copies take longer with larger micro-batches, which is what C(handle) is for.

Both are fitted by least squares of relative errors with a broad prior, so that one load gives a first answer.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from .._base import least_squares
from .._split import cost_model, expert_placement, known_devices, layer_weights, model_weights
from .._split.expert_placement import ExpertPlacement
from .._split.split_problem import Problem

#: Before anything tells more: the share of a token's time that is not the CPU's, and its standard deviation.
BASE_SHARE: t.Final = (0.2, 0.15)
#: How far the base may be off where the bandwidth of all cards is known (relative standard deviation).
BANDWIDTH_ERROR: t.Final = 0.35
#: Likewise what cards compute of a prompt: a small model's rate is not that of a large one.
COMPUTE_ERROR: t.Final = 0.4
#: Shares of a micro-batch's time, in the order of Prefill: start, compute, copy, handle. Each is its own error.
PREFILL_SHARES: t.Final = (0.06, 0.12, 0.64, 0.18)
#: How well a point of a fit is known (relative standard deviation) before two loads say it.
POINT_NOISE: t.Final = 0.02


class Decode(t.NamedTuple):
    """Coefficients of decoding, in ms: per whole model on average cards, and per block's worth of experts in RAM."""

    base: float
    each: float


class Prefill(t.NamedTuple):
    """Coefficients of a prompt, in ms, see above; those by token are per 1000 tokens."""

    start: float
    compute: float
    copy: float
    handle: float


class Point(t.NamedTuple):
    """One measured time: what it is explained by, and how long it took."""

    features: tuple[float, ...]
    ms: float


@dataclasses.dataclass(frozen=True)
class Amounts:
    """What a placement holds where, see above."""

    card: float
    cpu: float
    work: float
    copies: float

    @property
    def decode(self) -> tuple[float, float]:
        """What decoding is explained by."""
        return self.card, self.cpu

    def prefill(self, prompt: int, micro_batch: int) -> tuple[float, float, float, float]:
        """Return what a prompt is explained by."""
        batches, tokens = cost_model.micro_batches(prompt, micro_batch), prompt / 1000
        return batches, tokens * self.work, batches * self.copies, tokens * self.copies


class Weigher:
    """Works out the amounts of placements of one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        model = problem.memory.model
        self.read = model_weights.bytes_read(model, problem.memory.serving, problem.tested_depth)
        self.work = [float(value) for value in model.get("block_weights") or model["block_bytes"]] + [0.0]
        sizes = model.get("block_expert_bytes") or {}
        blocks = [sum(own) for own in zip(*sizes.values(), strict=True) if any(own)]
        self.block_bytes = sum(blocks) / len(blocks) if blocks else 1.0
        self.used = model["expert_used_count"] / max(1, model["expert_count"])
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
        plain = dataclasses.replace(placement, threads=0, no_host=False)
        if plain not in self._known:
            self._known[plain] = self._amounts(plain)
        return self._known[plain]

    def _amounts(self, placement: ExpertPlacement) -> Amounts:
        in_ram = [*expert_placement.block_ram_bytes(self.problem.memory.model, placement), 0]
        card = work = 0.0
        start, last = 0, len(in_ram) - 1
        first = next(device for device, count in enumerate(placement.layers) if count)
        for device, count in enumerate(placement.layers):
            own = slice(start, start + count)
            start += count
            on_card = sum(self.read[own]) - self.used * sum(in_ram[own])
            card += self.rates["decode"][device] * max(0.0, on_card)
            # a prompt's experts that are in RAM are computed by the first device
            away = sum(self.expert_work(block, in_ram[block]) for block in range(start - count, min(start, last)))
            work += self.rates["prefill"][device] * (sum(self.work[own]) - away) + self.rates["prefill"][first] * away
        blocks = sum(in_ram) / self.block_bytes
        return Amounts(card / sum(self.read), blocks, work / max(1.0, sum(self.work)), blocks)

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


def fit_decode(points: t.Sequence[Point], weigher: Weigher, noise: float) -> Decode | None:
    """Return the coefficients of decoding, or None without a point."""
    if not points:
        return None
    typical = max(point.ms for point in points)
    known = weigher.base_ms()
    base = (typical * BASE_SHARE[0], typical * BASE_SHARE[1])
    if known is not None and known < typical:
        base = (known, BANDWIDTH_ERROR * known)
    cpu = max(point.features[1] for point in points) or 1.0
    each = max(typical - base[0], 0.1 * typical) / cpu
    return Decode(*_ridge(points, noise, (base, (each, 3 * each))))


def fit_prefill(points: t.Sequence[Point], weigher: Weigher, noise: float) -> Prefill | None:
    """Return the coefficients of a prompt, or None without a point."""
    if not points:
        return None
    typical = points[0]
    means = [
        share * typical.ms / feature if feature else 0.0
        for share, feature in zip(PREFILL_SHARES, typical.features, strict=True)
    ]
    copy = weigher.copy_ms()
    if copy is not None and copy * typical.features[2] < typical.ms:
        # what a link says is the least that a copy takes
        means[2] = max(copy, (means[2] + copy) / 2)
    prior = [(mean, max(mean, 1e-9)) for mean in means]
    compute = weigher.compute_ms()
    if compute is not None and compute * typical.features[1] < typical.ms:
        prior[1] = (compute, COMPUTE_ERROR * compute)
    return Prefill(*_ridge(points, noise, prior))


def _ridge(points: t.Sequence[Point], noise: float, prior: t.Sequence[tuple[float, float]]) -> list[float]:
    """Return the coefficients of least relative squares, none negative, with a prior of (mean, deviation) each."""
    free = [index for index, (_mean, deviation) in enumerate(prior) if deviation > 0]
    while free:
        values = _solved(points, max(noise, 1e-3), prior, free)
        if values is None:
            return [mean for mean, _deviation in prior]
        if min(values) >= 0:
            known = dict(zip(free, values, strict=True))
            return [known.get(index, 0.0) for index in range(len(prior))]
        free = [index for index, value in zip(free, values, strict=True) if value >= 0]
    return [0.0] * len(prior)


def _solved(
    points: t.Sequence[Point], error: float, prior: t.Sequence[tuple[float, float]], free: t.Sequence[int]
) -> list[float] | None:
    """Return the coefficients C(free) of least squares, the others being zero; None where they are not determined."""
    size = range(len(free))
    rows = [([point.features[index] / point.ms / error for index in free], 1 / error) for point in points]
    # the prior as further points, one per coefficient
    rows += [
        ([1 / prior[index][1] if i == j else 0.0 for j in size], prior[index][0] / prior[index][1])
        for i, index in enumerate(free)
    ]
    matrix = [[sum(row[i] * row[j] for row, _value in rows) for j in size] for i in size]
    right = [sum(row[i] * value for row, value in rows) for i in size]
    scale = [math.sqrt(matrix[i][i]) for i in size]
    scaled = [[matrix[i][j] / scale[i] / scale[j] for j in size] for i in size]
    solved = least_squares.solve(scaled, [right[i] / scale[i] for i in size])
    return None if solved is None else [value / scale[i] for i, value in enumerate(solved)]
