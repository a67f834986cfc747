#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: upgrade_record
short_description: Manage the record of a host's upgrades, and decide what comes next
version_added: 0.1.0
description:
  - Owns the file O(path), which has a schema number, the upgrade that is under way, and those that have ended.
  - Each action that changes the record says what comes next as RV(step). What cannot go together with the upgrade that
    is under way fails, with the cure.
  - A box and the hosts that lend it devices have one record, on the box, and move together or not at all.
  - A damaged record, or one of another schema, is an error and left as it is.
  - The part of an action plugin of this name reads the facts of the hosts on the controller.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
options:
  action:
    description:
      - V(open) returns which component and version count. V(decide) returns the first step. V(verify) fails where an
        upgrade is under way, V(admit) where O(revalidation) is not accepted, so that no upgrade could be judged. These
        only read.
      - V(begin) records that an upgrade has begun, V(advance) that it is in another O(stage), or that the installation
        failed on one of O(hosts), V(judge) the verdict on the new version, V(finish) that the upgrade has ended.
      - V(judge) and V(finish) fail, and leave the record as it is, where something else computed meanwhile.
    type: str
    choices: [open, decide, verify, admit, begin, advance, judge, finish]
    default: open
  component:
    description: What is to be upgraded. Empty means what is under way.
    type: str
    choices: ["", driver, llama_cpp]
    default: ""
  asked:
    description: C(version) and C(sha256) that are asked for; empty where the variables of the component's role say it.
    type: dict
    default: {}
    suboptions:
      version:
        description: A version of the driver, a branch, a commit or tag of llama.cpp, or a version of its source
          distribution.
        type: str
        default: ""
      sha256:
        description: SHA-256 of the source distribution.
        type: str
        default: ""
  on_resume:
    description: What becomes of an upgrade that was interrupted.
    type: str
    choices: [continue, rollback]
    default: continue
  hosts:
    description: Names of the hosts that move together, this one first. Empty means this one alone.
    type: list
    elements: str
    default: []
  found:
    description:
      - What is known of each of O(hosts), in that order. The action plugin fills it, from the facts
        C(nvidia_driver_planned), C(llama_cpp_planned), C(llama_cpp_copy_planned) and C(nvidia_driver_reboot_required),
        and from what the role P(homelab.mixed_gpu.upgrade#role) sets where an installation fails.
    type: dict
    default: {}
  lost:
    description: Those of O(hosts) that do not answer any more. The action plugin fills it.
    type: list
    elements: str
    default: []
  stage:
    description: Stage, for V(advance).
    type: str
    choices: [building, installing, revalidating, keeping, rolling_back, proving]
  revalidation:
    description:
      - The fact C(revalidate_result) of the role P(homelab.mixed_gpu.revalidate#role). For V(begin) of the former
        version, for V(judge) of the new one, for V(finish) of the one that was restored.
    type: dict
  path:
    description: The record.
    type: path
    default: /var/lib/mixed_gpu/upgrade.json
  fact_file:
    description: The file of recorded deployments. V(open) refuses llama.cpp where the active one uses lenders that are
      not in O(hosts).
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
  keep:
    description: Number of ended upgrades to keep.
    type: int
    default: 20
"""

EXAMPLES = r"""
- name: Read the upgrade that is under way
  homelab.mixed_gpu.upgrade_record:
  register: example_opened

- name: Record that the new version is installed
  homelab.mixed_gpu.upgrade_record:
    action: advance
    stage: revalidating
"""

RETURN = r"""
record:
  description: The record as it is now, or would be in check mode.
  returned: success
  type: dict
opening:
  description:
    - C(component) and C(asked) that count, and C(way), which variables of llama.cpp say what to install (empty for
      those of the inventory, V(git) or V(sdist)).
    - C(plan) says whether to look at the host, C(sentence) where an upgrade stopped.
  returned: action is open
  type: dict
step:
  description:
    - C(do) and C(sentence). C(do) is V(begin), V(install), V(revalidate), V(accept) (make what was measured the
      baseline), V(measure) (measure again for that), V(restore) or V(nothing).
  returned: action is decide, begin, advance or judge
  type: dict
former:
  description: Of each host, the version and the builds that the upgrade leads from; empty where none is under way.
  returned: action is decide, begin, advance or judge
  type: dict
wanted:
  description: Of each host, the version and the builds that the upgrade leads to; empty where none is under way.
  returned: action is decide, begin, advance or judge
  type: dict
result:
  description: The fact C(upgrade_result), with C(changed), C(summary) and C(upgrade).
  returned: action is decide or finish
  type: dict
ended_well:
  description: Whether the upgrade was kept, or rolled back because that was asked for.
  returned: action is finish
  type: bool
inventory:
  description: What to write into the inventory, so that the playbook site keeps the upgrade.
  returned: action is finish
  type: str
"""

import contextlib
import os
import textwrap
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import (
    upgrade_stages,
    upgrade_steps,
    upgrade_words,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, fallbacks, host_record

Answer = tuple[Json, Json]

READING: t.Final = ("open", "decide", "verify", "admit")


def hosts_of(params: Json) -> dict[str, upgrade_steps.Host]:
    """Return the hosts that move together, this one first."""
    return {
        name: upgrade_steps.Host(
            planned={key: plan for key, plan in (one.get("planned") or {}).items() if plan},
            failure=textwrap.shorten(one.get("failure") or "", upgrade_stages.MOST_CHARACTERS, placeholder=" ..."),
            reboot_required=bool(one.get("reboot_required")),
            lends_at=one.get("lends_at") or "",
            copy=one.get("copy") or {},
        )
        for name, one in params["found"].items()
    }


def ends_of(params: Json) -> list[upgrade_stages.Ends]:
    """Return what each host has and is to have; nothing without a plan."""
    return upgrade_steps.ends(params["component"], hosts_of(params))


def served_over(path: str) -> list[str]:
    """Return the lenders of the active deployment. Raises UserError for a damaged file."""
    recorded = host_record.read(path)
    entry = recorded["models"].get(recorded["active"]) or {}
    return list(fallbacks.lenders(entry.get("rpc_endpoints") or []))


def opened(params: Json, record: Json, _now: str) -> Answer:
    """Return the record and what is known before the host is looked at."""
    asked, component = params["asked"], params["component"]
    hosts = hosts_of(params)
    upgrade_steps.refuse_alone(record, component, served_over(params["fact_file"]), hosts)
    lenders = list(hosts)[1:]
    given = (asked["version"], asked["sha256"], params["on_resume"])
    found = upgrade_steps.opening(record, component, *given, lenders)
    return record, {"opening": found}


def decided(params: Json, record: Json, _now: str) -> Answer:
    """Return the record and the first step."""
    step = upgrade_steps.decide(record, ends_of(params), params["on_resume"])
    return record, {"step": step, "result": {"changed": False, "summary": step["sentence"], "upgrade": None}}


def verified(_params: Json, record: Json, _now: str) -> Answer:
    """Return the record; raises UserError where an upgrade is under way."""
    if record["under_way"] is not None:
        raise UserError(f"{upgrade_words.stopped(record['under_way'])}; run the playbook upgrade to go on")
    return record, {}


def begun(params: Json, record: Json, now: str) -> Answer:
    """Return the record with an upgrade under way, and its next step."""
    ends = ends_of(params)
    if not ends:
        raise UserError("an upgrade begins with what the role of the component plans")
    record = upgrade_stages.begin(record, params["component"], ends, params["asked"], params["revalidation"], now)
    return record, {"step": {"do": "install", "sentence": ""}}


def admitted(params: Json, record: Json, _now: str) -> Answer:
    """Return the record, with C(msg) where the host is not as its baseline says: an upgrade could not be judged."""
    if params["revalidation"]["accepted"]:
        return record, {}
    return record, {"msg": upgrade_words.not_as_its_baseline(next(iter(params["found"])), params["revalidation"])}


DOES: t.Final = {"building": "install", "installing": "install", "revalidating": "revalidate"}


def advanced(params: Json, record: Json, now: str) -> Answer:
    """Return the record with its upgrade in another stage, or after the failure of a host, and the next step."""
    hosts = hosts_of(params)
    if params["stage"] in DOES and upgrade_steps.why_failed(hosts):
        return failed(hosts, record, now, params["keep"])
    step = {"do": DOES.get(params["stage"], "restore"), "sentence": ""}
    return upgrade_stages.advance(record, params["stage"], now), {"step": step}


def failed(hosts: upgrade_steps.Hosts, record: Json, now: str, keep: int) -> Answer:
    """Return the record after a failure, and the next step, or C(msg) where the upgrade ends or waits."""
    record, step = upgrade_steps.failed(record, hosts, now, keep)
    if step is not None:
        return record, {"step": step}
    if record["under_way"] is not None:
        return record, {"msg": f"{upgrade_steps.why_failed(hosts)} The upgrade goes on from there."}
    return record, {"msg": upgrade_words.summary(record["finished"][-1])}


def judged(params: Json, record: Json, now: str) -> Answer:
    """Return the record with the verdict on the new version, and the next step."""
    if params["revalidation"]["contended"]:
        return record, {"msg": upgrade_words.not_judged(upgrade_stages.under_way(record), params["revalidation"])}
    record, step = upgrade_steps.judged(record, params["revalidation"], now)
    return record, {"step": step}


def finished(params: Json, record: Json, now: str) -> Answer:
    """Return the record with its upgrade at its end, and what is said of it."""
    back = params["revalidation"]
    if back is not None and back["contended"] and not back["accepted"]:
        return record, {"msg": upgrade_words.not_judged(upgrade_stages.under_way(record), back)}
    record = upgrade_steps.finished(record, back, now, params["keep"])
    upgrade = record["finished"][-1]
    return record, {
        "result": {"changed": True, "summary": upgrade_words.summary(upgrade), "upgrade": upgrade},
        "ended_well": upgrade_steps.ended_well(upgrade),
        "inventory": upgrade_words.inventory(upgrade),
    }


ACTIONS: t.Final[dict[str, t.Callable[[Json, Json, str], Answer]]] = {
    "open": opened, "decide": decided, "verify": verified, "admit": admitted, "begin": begun, "advance": advanced,
    "judge": judged, "finish": finished,
}  # fmt: skip


def run(module: AnsibleModule) -> Json:
    """Return the module's result, after writing what has to change."""
    params = module.params
    path = params["path"]
    file = json_state.StateFile(module, upgrade_stages.FORM, path, os.path.join(os.path.dirname(path), ".upgrade.lock"))
    reads_only = params["action"] in READING
    with contextlib.nullcontext() if reads_only else file.locked():
        before = file.read() or upgrade_stages.empty()
        if params["lost"]:
            module.fail_json(msg=upgrade_words.lost(before["under_way"], params["lost"]), record=before)
        try:
            after, answer = ACTIONS[params["action"]](params, before, json_file.utc_now())
        except UserError as exc:
            if reads_only:
                raise
            raise UserError(
                f"{path}: {exc}; if another play is upgrading this host, let it end, else move the file away"
                f" (mv {path} {path}.old) and {upgrade_stages.FORM.cure}"
            ) from exc
        changed = after != before and file.write(after)
    if "msg" in answer:
        module.fail_json(msg=answer["msg"], record=after)
    places = upgrade_steps.places_of(after, params["found"]) if "step" in answer else {}
    return {"changed": changed, "record": after, **answer, **places, **file.diff()}


def main() -> None:
    asked = {"version": {"type": "str", "default": ""}, "sha256": {"type": "str", "default": ""}}
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": list(ACTIONS), "default": "open"},
            "component": {"type": "str", "choices": ["", *upgrade_stages.COMPONENTS], "default": ""},
            "asked": {"type": "dict", "default": {}, "options": asked, "apply_defaults": True},
            "on_resume": {"type": "str", "choices": ["continue", "rollback"], "default": "continue"},
            "hosts": {"type": "list", "elements": "str", "default": []},
            "found": {"type": "dict", "default": {}},
            "lost": {"type": "list", "elements": "str", "default": []},
            "stage": {"type": "str", "choices": list(upgrade_stages.STAGES)},
            "revalidation": {"type": "dict"},
            "path": {"type": "path", "default": upgrade_stages.PATH},
            "fact_file": {"type": "path", "default": fact_record.PATH},
            "keep": {"type": "int", "default": 20},
        },
        required_if=[
            ("action", "admit", ("revalidation",)),
            ("action", "begin", ("revalidation",)),
            ("action", "advance", ("stage",)),
            ("action", "judge", ("revalidation",)),
        ],
        supports_check_mode=True,
    )
    with json_state.failures_told(module, module.params["path"]):
        module.exit_json(**run(module))


if __name__ == "__main__":
    main()
