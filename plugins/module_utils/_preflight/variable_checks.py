# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Variables of an inventory against the argument specs of all roles. Private. Pure functions only.

Ansible checks a role's arguments when the role begins, which for a late role is after the downloads. Here all of them
are judged at once, with one sentence per variable.
"""

from __future__ import annotations

import difflib
import re
import typing as t

from .._base import variables
from .._base.types import Json

Variables = t.Mapping[str, t.Any]
Specs = t.Mapping[str, t.Mapping[str, Json]]

#: How alike a known name must be to be the one that was meant (difflib's ratio).
LIKENESS: t.Final = 0.75
#: The same for a name that begins with no name of a role that is ours for sure: llama_swap_port, report_format.
LIKENESS_ELSEWHERE: t.Final = 0.9
#: No time, size or count of a role is negative but these, and none is larger. NaN is in no range.
_LARGEST: t.Final = 10**15
_LEAST: t.Final = {"llama_server_cache_ram_mib": -1}  # llama.cpp takes that for no limit
#: How a value of more than one part is written.
_LITERALS: t.Final = {"dict": "{...}", "list": "[...]"}
_NAME: t.Final = re.compile(r"\w+")
#: Holds variables of roles for the host's own play, which nobody watches.
_UNATTENDED: t.Final = "revalidation_timer_variables"


class _Later:
    """What a value holds where its template needs a variable that is not set yet."""

    def __repr__(self) -> str:
        return "a value that is set later"


LATER: t.Final = _Later()


def problems(
    values: Variables, names: t.Iterable[str], specs: Specs, words: t.Collection[str], partly: Variables | None = None
) -> list[str]:
    """Return one sentence per variable that no role can use.

    C(values) are the roles' variables whose value is known, C(names) all variables that are set, C(specs) the options
    of the argument specs by role, and C(words) every name that the collection's own files use. C(partly) are variables
    that have LATER in the place of what is not known yet.
    """
    options = {name: option for role in specs.values() for name, option in role.items()}
    found = [*misspelt(names, specs, words)]
    for name, value in {**values, **(partly or {})}.items():
        spec = options.get(name, {})
        if value is None and spec:
            kind = variables.SPEC_TYPES.get(spec.get("type", "str"), (None, "a value"))[1]
            found.append(f"{name} is null (nothing after the colon), and must be {kind}: give one, or remove it.")
        found += _wrong(value, spec, name, spec.get("no_log", False))
    unattended = values.get(_UNATTENDED)
    if isinstance(unattended, t.Mapping):
        known = {name: value for name, value in unattended.items() if name in options and name != _UNATTENDED}
        found += [f"In {_UNATTENDED}: {said}" for said in problems(known, map(str, unattended), specs, words)]
    return [*found, *_context_size(values), *_unknown_model(values)]


def told_once(sentences: t.Iterable[str], raw: Variables) -> list[str]:
    """Return sentences without those about a variable that only repeats another one of which a sentence is.

    C(raw) are the variables before their templates are filled in: a default of a role may be another role's variable,
    and what a playbook gives a role may be a variable of the playbook (mixed_gpu_...), which is named instead.
    """
    begins = {said: (_NAME.match(said) or [""])[0] for said in sentences}
    about = set(begins.values())
    templates = {name: raw[name] for name in about if isinstance(raw.get(name), str)}
    follows = {name for name, text in templates.items() if set(_NAME.findall(text)) & (about - {name})}
    given = {name: [word for word in _NAME.findall(text) if word.startswith("mixed_gpu_") and word in raw]
             for name, text in templates.items()}  # fmt: skip
    return [
        said.replace(name, given[name][0]) if given.get(name) else said
        for said, name in begins.items() if name not in follows
    ]  # fmt: skip


def misspelt(names: t.Iterable[str], specs: Specs, words: t.Collection[str]) -> t.Iterator[str]:
    """Yield a sentence per name that begins with a role's name and that nothing in the collection has.

    What begins with an underscore is a role's own; of a role that is imported it counts as set for the whole play.
    Roles of one plain word (C(report), C(upgrade)) share their prefix with variables of other people: there, as without
    a role's prefix, only a name that is nearly an option's is taken for a slip.
    """
    options = sorted(name for role in specs.values() for name in role)
    of_playbooks = sorted(word for word in words if word.startswith("mixed_gpu_"))
    for name in sorted(set(names) - set(words) - set(options)):
        if name.startswith("_"):
            continue
        plain = name.lower().replace("-", "_")
        role = max((role for role in specs if "_" in role and plain.startswith(f"{role}_")), key=len, default=None)
        near = difflib.get_close_matches(plain, options, 1, LIKENESS if role else LIKENESS_ELSEWHERE)
        near = near or difflib.get_close_matches(plain, of_playbooks, 1, LIKENESS_ELSEWHERE)
        if near and plain != near[0] and plain.endswith(f"_{near[0]}"):
            continue  # an option's name behind a prefix of one's own, as in vault_llama_server_api_key
        if near:
            yield f"{name} is no variable of this collection; did you mean {near[0]}?"
        elif role:
            yield f"{name} is no variable of the role {role}; see ansible-doc -t role homelab.mixed_gpu.{role}."


class Lacking(t.NamedTuple):
    """Variables whose templates need another one: those that are refused, and those that are left to their role."""

    refused: list[str]
    left: list[str]


def undefined(
    missing: t.Mapping[str, str], names: t.Iterable[str], specs: Specs, words: t.Collection[str], role: str | None
) -> Lacking:
    """Return a sentence per variable whose template needs one that is not set, and that no role of ours sets.

    C(missing): variable -> name that its template lacks. C(names): all variables that are set. What a later role sets
    is among C(words). C(role) is the role that runs, whose own variables are used now: they are refused, as all are
    where it is None, in a playbook of the collection in which nobody else sets a variable. In a play of the user a role
    of theirs may still set it.
    """
    owners = {name: owner for owner, options in specs.items() for name in options}
    set_names = [name for name in names if isinstance(name, str)]
    found = Lacking([], [])
    for name, lacks in missing.items():
        if lacks in owners or lacks in words or lacks.startswith(("_", "ansible_")) or lacks == "item":
            continue
        near = difflib.get_close_matches(lacks, set_names, 1, LIKENESS_ELSEWHERE)
        meant = f" ({near[0]} is)" if near else ""
        needs = f"{name} needs the variable {lacks}, which is not set"
        if role is None or owners.get(name) == role:
            found.refused.append(f"{needs}{meant}: set it, or correct its name.")
        else:
            owner = owners.get(name, "that uses it")
            found.left.append(f"{needs} yet{meant}: it has to be before the role {owner} begins.")
    return found


def _wrong(value: t.Any, spec: Json, path: str, secret: bool) -> t.Iterator[str]:
    """Yield what is wrong with a value: its type, its choice, and the same of what it holds."""
    if value is None or value is LATER or not spec:
        return
    convert, words = variables.SPEC_TYPES.get(spec.get("type", "str"), (None, ""))
    if convert is None:
        return
    try:
        converted = convert(value)
    except (OverflowError, TypeError, ValueError):
        literal = _LITERALS.get(spec.get("type", "str")) if isinstance(value, str) else None
        given = f" (-e takes one as '{{{path}: {literal}}}')" if literal else ""
        yield f"{path} is {_shown(value, secret)}, and must be {words}{given}."
        return
    least = _LEAST.get(path, 0)
    if isinstance(converted, (int, float)) and not least <= converted <= _LARGEST:
        yield f"{path} is {_shown(value, secret)}, and must be {words} from {least} to {_LARGEST}."
        return
    choices = spec.get("choices")
    for one in converted if isinstance(converted, list) else [converted]:
        if choices and one is not LATER and one not in choices:
            named = ", ".join(str(choice) for choice in choices if choice != "")
            yield f"{path} is {_shown(one, secret)}, and must be one of {named}."
    yield from _inner(converted, spec, path, secret)


def _inner(value: t.Any, spec: Json, path: str, secret: bool) -> t.Iterator[str]:
    if isinstance(value, list) and "elements" in spec:
        element = {"type": spec["elements"], "options": spec.get("options")}
        for index, one in enumerate(value):
            if one is None:
                yield f"{path}[{index}] is null (nothing after the dash): remove it."
            yield from _wrong(one, element, f"{path}[{index}]", secret)
    elif isinstance(value, t.Mapping) and spec.get("options"):
        options: dict[str, Json] = spec["options"]
        for key in sorted(set(map(str, value)) - set(options)):
            near = difflib.get_close_matches(key, options, 1, LIKENESS)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(options))}."
            yield f"{path}.{key if key.isprintable() else repr(key)} is no option; {meant}"
        for key, option in options.items():
            if option.get("required") and value.get(key) is None:
                yield f"{path} lacks {key}, which is required."
            yield from _wrong(value.get(key), option, f"{path}.{key}", secret or option.get("no_log", False))


def _shown(value: t.Any, secret: bool) -> str:
    return "a secret" if secret else f"{value!r:.60}"


def _context_size(values: Variables) -> t.Iterator[str]:
    """Yield a sentence where the context is neither a number nor max, which no type of an argument spec says."""
    size = values.get("split_tuning_context_size")
    if size is not None and size != "max" and not (str(size).isdecimal() and int(str(size)) > 0):
        yield f"split_tuning_context_size is {size!r:.60}, and must be a number of tokens, or max."


def _unknown_model(values: Variables) -> t.Iterator[str]:
    """Yield a sentence where the model to tune is none of the models to install.

    With ExLlama site names the model itself, and says so where it has no entry.
    """
    if values.get("mixed_gpu_engine") == "exllamav2":
        return
    wanted, entries = values.get("split_tuning_model_id"), values.get("llm_models")
    if not wanted or not isinstance(entries, list) or values.get("split_tuning_model_path"):
        return
    ids = [str(entry["id"]) for entry in entries if isinstance(entry, t.Mapping) and "id" in entry]
    if str(wanted) not in ids:
        there = ", ".join(ids) or "which is empty"
        yield f"split_tuning_model_id is {wanted!r}, which is no id of an entry of llm_models ({there})."
