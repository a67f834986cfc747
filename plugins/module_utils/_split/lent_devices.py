# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of what other hosts lend to a box. Private to this collection. Pure functions only.

The file /var/lib/mixed_gpu/lenders.json of the box holds the schema and, by the name of each lender, what lent()
returns. A lender that takes no part in a run, because it is asleep or left out, stays as it was recorded.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.json_state import Form
from .._base.types import Json, Mapping

SCHEMA: t.Final = 1
#: What is recorded of a card, of what gpu_facts reports.
_OF_CARD: t.Final = (
    "id", "name", "memory_total_mib", "memory_bandwidth_gb_per_s", "compute_capability", "power_limit_watts",
)  # fmt: skip
_OF_BUILD: t.Final = ("build", "commit", "version")


def _check(data: Json) -> None:
    lenders = data.get("lenders")
    if not isinstance(lenders, dict) or not all(isinstance(one, dict) and "servers" in one for one in lenders.values()):
        raise UserError("it names no lenders")


FORM: t.Final = Form(SCHEMA, "run homelab.mixed_gpu.site again", _check)


def lent(address: str, servers: t.Iterable[Mapping], cards: t.Iterable[Mapping], installed: Mapping) -> Json:
    """Return what a lender lends.

    C(servers) are those of rpc_servers.servers, C(cards) those of gpu_facts, C(installed) is llama_cpp_installed. Each
    server is recorded as its C(endpoint), C(device) (llama.cpp's name on the lender, "" for its own choice) and
    C(card).
    """
    by_id = {str(card["id"]): {name: card.get(name) for name in _OF_CARD} for card in cards}
    rows = [
        {
            "endpoint": server["endpoint"],
            "device": server["device"],
            "card": by_id.get(str(server["environment"].get("CUDA_VISIBLE_DEVICES", ""))),
        }
        for server in servers
    ]
    return {"address": address, "build": {name: installed[name] for name in _OF_BUILD}, "servers": rows}


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


def endpoints(record: Mapping | None) -> list[str]:
    """Return the endpoints of all lenders, in the order in which llama.cpp numbers their devices."""
    lenders = record["lenders"] if record else {}
    return [server["endpoint"] for lender in lenders.values() for server in lender["servers"]]
