"""Every role documents exactly what it defaults: defaults/main.yml and meta/argument_specs.yml have the same keys."""

from __future__ import annotations

import pathlib
import sys
import typing as t

import yaml


def _load(path: pathlib.Path) -> dict[str, t.Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def disagreements(role: pathlib.Path) -> list[str]:
    """One sentence per key that only one of the two files has, and per default that they state unlike."""
    defaults = _load(role / "defaults/main.yml")
    specs = _load(role / "meta/argument_specs.yml")["argument_specs"]
    found = []
    for entry_point, spec in specs.items():
        options = spec.get("options", {})
        found += [f"{role.name}: {key} is in defaults only" for key in sorted(set(defaults) - set(options))]
        found += [
            f"{role.name}: {key} ({entry_point}) has no default and is not required"
            for key in sorted(set(options) - set(defaults))
            if not options[key].get("required")
        ]
        for key in sorted(set(options) & set(defaults)):
            stated, value = options[key].get("default"), defaults[key]
            templated = isinstance(value, str) and "{{" in value
            if stated is not None and not templated and stated != value:
                found.append(
                    f"{role.name}: {key} ({entry_point}) defaults to {value!r}, its documentation says {stated!r}"
                )
    return found


def main() -> int:
    roles = sorted(path for path in pathlib.Path("roles").iterdir() if path.is_dir())
    found = [sentence for role in roles for sentence in disagreements(role)]
    print("\n".join(found) or f"argument specs: {len(roles)} roles document what they default")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
