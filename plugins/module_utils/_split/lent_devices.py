# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of what other hosts lend to a box. Private to this collection. Pure but for read.

The file /var/lib/mixed_gpu/lenders.json of the box holds the schema and, by the name of each lender, what lent()
returns. A lender that takes no part in a run, because it is asleep or left out, stays as it was recorded.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.json_state import Form
from .._base.text import one_line
from .._base.types import Json, Mapping

SCHEMA: t.Final = 1
#: What is recorded of a card, of what gpu_facts reports.
_OF_CARD: t.Final = (
    "id", "name", "memory_total_mib", "memory_bandwidth_gb_per_s", "compute_capability", "power_limit_watts",
    "pcie_width",
)  # fmt: skip
_OF_BUILD: t.Final = ("build", "commit", "version")
_WAKE: t.Final = "wake it, or see that Ansible reaches it"
_CORRECT: t.Final = "it answers, so correct that; its cards are read there with become"
_MOST_CHARACTERS: t.Final = 300


_LENDER: t.Final = {
    "address?": str,
    "build": {"build": (None, int, str), "commit": (None, str), "version?": (None, str)},
    "driver_version?": (None, str),
    "servers": [{"endpoint": str, "device?": str, "card": (None, {"id": str})}],
}  # fmt: skip
FORM: t.Final = Form(SCHEMA, "run homelab.mixed_gpu.site again", shape={"lenders": {str: _LENDER}})


def lent(address: str, servers: t.Iterable[Mapping], gpus: Mapping, installed: Mapping) -> Json:
    """Return what a lender lends.

    C(servers) are those of rpc_servers.servers, C(gpus) is mixed_gpu_gpus, C(installed) is llama_cpp_installed. Each
    server is recorded as its C(endpoint), C(device) (llama.cpp's name on the lender, "" for its own choice) and
    C(card).
    """
    by_id = {str(card["id"]): _card(card) for card in gpus["gpus"]}
    rows = [
        {
            "endpoint": server["endpoint"],
            "device": server["device"],
            "card": by_id.get(str(server["environment"].get("CUDA_VISIBLE_DEVICES", ""))),
        }
        for server in servers
    ]
    build = {name: installed[name] for name in _OF_BUILD}
    return {"address": address, "build": build, "driver_version": gpus.get("driver_version"), "servers": rows}


def _card(card: Mapping) -> Json:
    return {name: card.get(name) for name in _OF_CARD}


def merged(recorded: Mapping | None, present: t.Mapping[str, Json], absent: t.Iterable[str]) -> Json:
    """Return the record after a run: what takes part as it is now, what does not as it was recorded.

    Lenders are in the order of their names: who takes part must not change the order of the endpoints, since another
    order means another tuning.
    """
    before = recorded["lenders"] if recorded else {}
    after = {**present, **{name: before[name] for name in absent if name in before}}
    return {"schema": SCHEMA, "lenders": dict(sorted(after.items()))}


def check_builds(box: str, installed: Mapping, lenders: t.Mapping[str, Mapping]) -> None:
    """Raise UserError for a lender whose llama.cpp is another than that of the box. C(lenders) as in the record."""
    for name, lender in lenders.items():
        pairs = [(installed[field], lender["build"][field]) for field in ("commit", "build")]
        known = [pair for pair in pairs if all(pair)]
        if known and any(one != other for one, other in known):
            raise UserError(
                f"{name} has llama.cpp {_said(lender['build'])} and {box} has {_said(installed)}, and both sides of an"
                f" RPC connection need the same: run homelab.mixed_gpu.site with {name} and {box} together."
            )


def _said(build: Mapping) -> str:
    return f"{build['version']}{' (' + build['commit'] + ')' if build['commit'] else ''}"


def read(state_dir: str, rpc_endpoints: t.Collection[str]) -> t.Mapping[str, Mapping]:
    """Return the lenders in the host's record that have one of these endpoints. Raises UserError for a damaged file."""
    return used(FORM.read(f"{state_dir}/lenders.json"), rpc_endpoints)


def used(record: Mapping | None, rpc_endpoints: t.Collection[str]) -> t.Mapping[str, Mapping]:
    """Return the lenders of a record that have one of these endpoints, by name."""
    lenders = record["lenders"] if record else {}
    return {
        name: lender for name, lender in lenders.items()
        if any(server["endpoint"] in rpc_endpoints for server in lender["servers"])
    }  # fmt: skip


class Unseen(t.NamedTuple):
    """Why the cards of a lender were not seen, as a clause, and the cure."""

    why: str
    cure: str


class Looks(t.NamedTuple):
    """What a look at lenders found: the fact mixed_gpu_gpus by name, or why there is none."""

    gpus: dict[str, Mapping]
    unseen: dict[str, Unseen]


def looks(results: t.Iterable[Mapping]) -> Looks:
    """Return what the module gpu_facts returned in a loop over names of lenders; an answer may be a failure."""
    found = Looks({}, {})
    for result in results:
        gpus = (result.get("ansible_facts") or {}).get("mixed_gpu_gpus")
        if gpus is not None:
            found.gpus[_item(result)] = gpus
        elif not result.get("skipped"):
            said = one_line(result.get("msg") or "it does not answer", _MOST_CHARACTERS)
            cure = _WAKE if result.get("unreachable") else _CORRECT
            found.unseen[_item(result)] = Unseen(said.removeprefix("Task failed: ").rstrip("."), cure)
    return found


def _item(result: Mapping) -> str:
    """Return the name of the host; of a job that was waited for, that of its start."""
    item = result["item"]
    return _item(item) if isinstance(item, t.Mapping) else str(item)


def configuration(lenders: t.Mapping[str, Mapping], seen: t.Mapping[str, Mapping]) -> Json:
    """Return what can move the speed of lenders, by name: C(driver_version), and C(cards), each with its C(endpoint).

    C(lenders) are those of the record, C(seen) is Looks.gpus; one that was not looked at is as it was recorded.
    """
    found = {}
    for name, lender in lenders.items():
        cards = [{**server["card"], "endpoint": server["endpoint"]} for server in lender["servers"] if server["card"]]
        driver = lender.get("driver_version")
        if name in seen and seen[name].get("available"):
            driver = seen[name]["driver_version"]
            by_id = {str(card["id"]): _card(card) for card in seen[name]["gpus"]}
            cards = [{**card, **by_id[card["id"]]} for card in cards if card["id"] in by_id]
        found[name] = {"driver_version": driver, "cards": cards}
    return found


def endpoints(record: Mapping | None) -> list[str]:
    """Return the endpoints of all lenders, in the order in which llama.cpp numbers their devices."""
    lenders = record["lenders"] if record else {}
    return [server["endpoint"] for lender in lenders.values() for server in lender["servers"]]
