"""earlier_tunings.py --machines N PAGE: what costs of an earlier tuning save, and whether the choice stays as good.

Each simulated machine is tuned twice, from nothing and with the costs that an earlier campaign on it has fitted: of the
same model with a shorter context, of another model with the same blocks, or costs that have changed since by much. What
both choose is judged by the true times; writes its two sections of the page.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import pathlib
import random
import statistics
import time
import typing as t

import families
import page
import simulated_families
import simulated_pair
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import known_costs, stages
from simulated_families import Machine
from simulated_pair import Json

FAMILIES: t.Final = ("two", "two, uneven blocks", "two, hop 0.3 to 2 ms", "two, short memory", "three", "four")
#: What was tuned before instead of a shorter context, on machines of which families.
SAME_BLOCKS, WRONG, THROTTLED = "same blocks", "wrong costs", "one throttled"
MODELS: t.Final = (
    (SAME_BLOCKS, "two"), (SAME_BLOCKS, "two, uneven blocks"), (SAME_BLOCKS, "three"), (WRONG, "two"), (WRONG, "three"),
    (THROTTLED, "two"), (THROTTLED, "three"),
)  # fmt: skip


class Outcome(t.NamedTuple):
    """What became of one machine; regrets in percent, infinite where nothing was chosen that loads."""

    regret_without: float
    regret_with: float
    loads_without: int
    loads_with: int
    kept: bool  # whether the campaign went on with the costs to its end
    held: bool | None  # whether the interval of the gain over the engine's own split, with the costs, holds


def earlier(machine: Machine, what: str, together: float, chance: random.Random) -> Machine:
    """Return the machine with what was tuned on it before: of MODELS, else a shorter context.

    What a layer costs has moved since, on each device by a little or by much, and decoding by C(together). A device
    that is throttled now took 1/3 to 4/5 of the time.
    """
    problem = copy.deepcopy(machine.problem)
    if not what:
        problem["serving"]["context_size"] //= chance.choice((2, 4))
    moved = 0.5 if what == WRONG else 0.03
    throttled = [1.0] * len(machine.decode_ms)
    if what == THROTTLED:
        throttled[chance.randrange(len(throttled))] = math.exp(-chance.uniform(math.log(1.25), math.log(3)))
    moves = [together * own * chance.lognormvariate(0, moved) for own in throttled]
    prompts = [own * chance.lognormvariate(0, moved) for own in throttled]
    return dataclasses.replace(
        machine,
        problem=problem,
        decode_ms=[ms * own for ms, own in zip(machine.decode_ms, moves, strict=True)],
        prefill_ms=[ms * own for ms, own in zip(machine.prefill_ms, prompts, strict=True)],
    )


def layer_now(machine: Machine, together: float, chance: random.Random) -> Json:
    """Return the average layer of today, whose KV cache makes decoding slower by 1 / C(together) than without any.

    What a byte of it takes against one of weights is not known to the planner, and may be half to three times.
    """
    layer, byte = machine.checked.average_layer, math.exp(chance.uniform(math.log(0.5), math.log(3)))
    return {**layer, "cache_bytes": layer["cache_bytes"] + layer["weights_bytes"] * (1 / together - 1) / byte}


def outcome(what: str, family: str, seed: int) -> Outcome | None:
    """Tune one machine twice; None where the earlier campaign has found no costs."""
    chance = random.Random(f"earlier {family} {seed}")
    machine = simulated_families.machine(family, seed)
    together = 1.0 if what else math.exp(chance.uniform(-0.3, 0.0))
    before = earlier(machine, what, together, chance)
    if len(stages.plan(before.problem, [])["feasible"]) < 2:
        return None
    plan, _loads = simulated_pair.drive(before, chance)
    fit = (plan["decision"] or {}).get("fit")
    if not fit or any(min(fit[name] or (1,)) <= 0 for name in ("decode_ms_per_layer", "prefill_ms_per_layer")):
        return None
    known = known_costs.of_fit("earlier", fit, [])
    carried = known_costs.of_problem(known, layer_now(machine, together, chance))
    problem = {**machine.problem, "known_costs": carried}
    regrets, counts, kept = [], [], False
    for tried in (machine, dataclasses.replace(machine, problem=problem)):
        plan, loads = simulated_pair.drive(tried, random.Random(seed))
        regrets.append(_regret(machine, plan["decision"]))
        counts.append(len(loads))
        kept = sum(load["purpose"] == "anchor" for load in loads) <= 1
    return Outcome(regrets[0], regrets[1], counts[0], counts[1], kept, families.held(machine, plan["decision"]))


def _regret(machine: Machine, decision: Json | None) -> float:
    best = machine.best()
    if decision is None or best is None or not machine.loads(tuple(decision["layers"])):
        return math.inf
    return max(0.0, 100 * (machine.true_ms(tuple(decision["layers"])) / machine.true_ms(best) - 1))


def row(name: str, outcomes: t.Sequence[Outcome]) -> str:
    """Return the line of one family."""
    held = [o.held for o in outcomes if o.held is not None]

    def percentiles(regrets: t.Iterable[float]) -> str:
        values = list(regrets)
        return " / ".join(f"{page.percentile(values, percent):.2f}" for percent in (50, 95, 100))

    cells = [
        name,
        str(len(outcomes)),
        f"{statistics.fmean(o.loads_without for o in outcomes):.1f}",
        f"{statistics.fmean(o.loads_with for o in outcomes):.1f}",
        percentiles(o.regret_without for o in outcomes),
        percentiles(o.regret_with for o in outcomes),
        str(sum(o.regret_with > o.regret_without + 1 for o in outcomes)),
        str(sum(o.regret_without > o.regret_with + 1 for o in outcomes)),
        f"{100 * sum(o.kept for o in outcomes) / len(outcomes):.0f} %",
        f"{sum(held)} of {len(held)}",
    ]
    return f"| {' | '.join(cells)} |"


HEADS: t.Final = (
    "| family | machines | loads without | loads with | regret without | regret with | worse | better | costs kept"
    " | intervals that hold |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def of_contexts(machines: int) -> list[str]:
    """Return the head of the section about a shorter context."""
    return [
        "## Planner, with the costs of an earlier tuning",
        "",
        f"`make bench-planners`, {machines} machines of each family, each tuned from nothing and with the",
        "costs of an earlier campaign with a shorter context. In that one decoding took 0.74 to 1 of the time, on all",
        "devices of a machine alike, and each device's costs differed by 3 % more (standard deviation). How many bytes",
        "of KV cache there were is known, and what one takes is not. Regret in percent: median / 95th percentile /",
        "most. Worse and better count machines whose regret differs by more than 1 %, which makes no difference.",
        "Intervals are those of the gain over llama.cpp's own split.",
    ]


def of_models(machines: int) -> list[str]:
    """Return the head of the section about other models."""
    return [
        "## Planner, with the costs of another model",
        "",
        f"As above, {machines} machines of each family, with the costs of a model of the same blocks, such as a",
        "fine-tune. Each device's costs differed by 3 % (standard deviation), wrong costs by a half. One throttled",
        "device is 1.25 to 3 times as slow as it was.",
        "Intervals are those of the gain over llama.cpp's own split, with the costs.",
    ]


def main() -> None:
    """Run all families and write the sections."""
    parser = argparse.ArgumentParser(description="What the costs of an earlier tuning save.")
    parser.add_argument("page", type=pathlib.Path, help="the page whose sections are replaced")
    parser.add_argument("--machines", type=int, required=True, help="machines of each family")
    arguments = parser.parse_args()
    for name, head, rows in (
        ("earlier", of_contexts(arguments.machines), [("", family) for family in FAMILIES]),
        ("earlier-models", of_models(arguments.machines), MODELS),
    ):
        lines = [*head, "", *HEADS]
        for what, family in rows:
            began = time.monotonic()
            found = [outcome(what, family, seed) for seed in range(arguments.machines)]
            lines.append(row(", ".join(filter(None, (family, what))), [o for o in found if o is not None]))
            print(f"earlier tunings | {lines[-1]} {time.monotonic() - began:.0f} s", flush=True)
        page.write_section(arguments.page, name, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
