# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Variables of an inventory against the argument specs of all roles. Private. Pure functions only.

Ansible checks a role's arguments when the role begins, which for a late role is after the downloads. Here all of them
are judged at once, with one sentence per variable.
"""

from __future__ import annotations

import difflib
import typing as t

from ansible.module_utils.common import validation

from .._base.types import Json

Variables = t.Mapping[str, t.Any]
Specs = t.Mapping[str, t.Mapping[str, Json]]

#: How alike a known name must be to be the one that was meant (difflib's ratio).
LIKENESS: t.Final = 0.75
#: The same for a name that begins with no name of a role that is ours for sure: llama_swap_port, report_format.
LIKENESS_ELSEWHERE: t.Final = 0.9


def _text(value: t.Any) -> str:
    """Return a value as text; Ansible would also write out a mapping or a list, which no role means."""
    if isinstance(value, (dict, list)):
        raise TypeError("no text")
    return str(value)


_TYPES: t.Final[dict[str, tuple[t.Callable[[t.Any], t.Any], str]]] = {
    "bool": (validation.check_type_bool, "true or false"),
    "dict": (validation.check_type_dict, "a mapping"),
    "float": (validation.check_type_float, "a number"),
    "int": (validation.check_type_int, "a whole number"),
    "list": (validation.check_type_list, "a list"),
    "path": (validation.check_type_path, "a path"),
    "str": (_text, "text"),
}


def problems(values: Variables, names: t.Iterable[str], specs: Specs, words: t.Collection[str]) -> list[str]:
    """Return one sentence per variable that no role can use.

    C(values) are the roles' variables whose value is known, C(names) all variables that are set, C(specs) the options
    of the argument specs by role, and C(words) every name that the collection's own files use.
    """
    options = {name: option for role in specs.values() for name, option in role.items()}
    found = [*misspelt(names, specs, words)]
    for name, value in values.items():
        found += _wrong(value, options.get(name, {}), name, options.get(name, {}).get("no_log", False))
    return [*found, *_context_size(values), *_unknown_model(values)]


def misspelt(names: t.Iterable[str], specs: Specs, words: t.Collection[str]) -> t.Iterator[str]:
    """Yield a sentence per name that begins with a role's name and that nothing in the collection has.

    What begins with an underscore is a role's own; of a role that is imported it counts as set for the whole play.
    Roles of one plain word (C(report), C(upgrade)) share their prefix with variables of other people: there, as without
    a role's prefix, only a name that is nearly an option's is taken for a slip.
    """
    options = sorted(name for role in specs.values() for name in role)
    for name in sorted(set(names) - set(words) - set(options)):
        if name.startswith("_"):
            continue
        role = max((role for role in specs if "_" in role and name.startswith(f"{role}_")), key=len, default=None)
        near = difflib.get_close_matches(name, options, 1, LIKENESS if role else LIKENESS_ELSEWHERE)
        if near and name.endswith(f"_{near[0]}"):
            continue  # an option's name behind a prefix of one's own, as in vault_llama_server_api_key
        if near:
            yield f"{name} is no variable of this collection; did you mean {near[0]}?"
        elif role:
            yield f"{name} is no variable of the role {role}; see ansible-doc -t role homelab.mixed_gpu.{role}."


def _wrong(value: t.Any, spec: Json, path: str, secret: bool) -> t.Iterator[str]:
    """Yield what is wrong with a value: its type, its choice, and the same of what it holds."""
    if value is None or not spec:
        return
    convert, words = _TYPES.get(spec.get("type", "str"), (None, ""))
    if convert is None:
        return
    try:
        converted = convert(value)
    except (TypeError, ValueError):
        yield f"{path} is {_shown(value, secret)}, and must be {words}."
        return
    choices = spec.get("choices")
    for one in converted if isinstance(converted, list) else [converted]:
        if choices and one not in choices:
            named = ", ".join(str(choice) for choice in choices if choice != "")
            yield f"{path} is {_shown(one, secret)}, and must be one of {named}."
    yield from _inner(converted, spec, path, secret)


def _inner(value: t.Any, spec: Json, path: str, secret: bool) -> t.Iterator[str]:
    if isinstance(value, list) and "elements" in spec:
        element = {"type": spec["elements"], "options": spec.get("options")}
        for index, one in enumerate(value):
            yield from _wrong(one, element, f"{path}[{index}]", secret)
    elif isinstance(value, t.Mapping) and spec.get("options"):
        options: dict[str, Json] = spec["options"]
        for key in sorted(set(map(str, value)) - set(options)):
            near = difflib.get_close_matches(key, options, 1, LIKENESS)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(options))}."
            yield f"{path}.{key} is no option; {meant}"
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
    if wanted not in ids:
        there = ", ".join(ids) or "which is empty"
        yield f"split_tuning_model_id is {wanted!r}, which is no id of an entry of llm_models ({there})."
