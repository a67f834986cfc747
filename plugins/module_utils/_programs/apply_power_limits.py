# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Puts power limits, locked clocks and persistence mode of NVIDIA cards into force, through NVML.

The role gpu_power copies this file to the host, where mixed-gpu-power.service runs it at boot; power_sweep does the
same to bring limits back. The module gpu_power imports it, so that what a play checks is what the boot applies. It uses
the standard library and nvidia-ml-py, and imports nothing of the collection.

Settings are a dict {schema: 1, cards: [{id, power_limit_watts, locked_clocks_mhz, persistence_mode}]}. A value of
None leaves that alone. Cards are dicts with the keys that read_cards reads, named as in the module gpu_facts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import typing as t

SCHEMA: t.Final = 1
_FIELDS = {"id", "power_limit_watts", "locked_clocks_mhz", "persistence_mode"}
_GRAPHICS_CLOCK = 0  # nvmlClockType_t
_COMING = {9, 12}  # NVML_ERROR_DRIVER_NOT_LOADED, _LIBRARY_NOT_FOUND: early in the boot they pass

Settings = dict[str, t.Any]
Card = t.Mapping[str, t.Any]


class PowerError(Exception):
    """What cannot be done; the text is one sentence with cause and cure."""


class NoDriverError(PowerError):
    """NVML does not answer, so no card can be asked."""


# --- settings and cards (pure) ---------------------------------------------------------------------------------------


def problems(wanted: Settings, cards: t.Sequence[Card], lost: t.Sequence[str] = ()) -> list[str]:
    """Return one sentence for each setting that the cards would not take; an empty list when all is well.

    `lost` are cards that do not answer, as sentences name them.
    """
    by_id = {card["id"]: card for card in cards}
    here = ", ".join(f"{card['id']} ({card['name']})" for card in cards) or "none"
    found = []
    for asked in wanted["cards"]:
        card = by_id.get(asked["id"])
        if card is None:
            found.append(
                f"Power settings name {asked['id']}, which does not answer; lost is {' and '.join(lost)}: power-cycle "
                "the machine, check riser and power cables, and read 'dmesg | grep Xid'; or correct the UUID."
                if lost
                else f"Power settings name {asked['id']}, which is none of this host's cards: {here}; correct the UUID."
            )
            continue
        label = f"{card['name']} ({card['id']})"
        found += _limit_problem(label, asked["power_limit_watts"], card)
        found += _clocks_problem(label, asked["locked_clocks_mhz"], card["clock_graphics_max_mhz"])
    return found


def _limit_problem(label: str, watts: t.Any, card: Card) -> list[str]:
    lowest, highest = card["power_limit_min_watts"], card["power_limit_max_watts"]
    if watts is None:
        return []
    if not _is_number(watts):
        return [f"The power limit of {label} is {watts!r}: give a number of watts."]
    if lowest is None or highest is None:
        return [f"{label} has no power limit that can be set: take it out of the power limits."]
    if not lowest <= watts <= highest:
        return [
            f"{label} takes power limits from {_plain(lowest)} to {_plain(highest)} W, and {_plain(watts)} W was asked"
            " for: choose one between."
        ]
    return []


def _clocks_problem(label: str, clocks: t.Any, most_mhz: int | None) -> list[str]:
    if clocks is None:
        return []
    if not isinstance(clocks, (list, tuple)) or len(clocks) != 2 or not all(_is_whole(clock) for clock in clocks):
        return [f"The locked clocks of {label} are {clocks!r}: give two whole numbers of MHz, lowest and highest."]
    lowest, highest = clocks
    if lowest > highest:
        return [f"The locked clocks of {label} are {lowest} to {highest} MHz: give the lower one first."]
    if most_mhz is None:
        return [f"{label} does not say what clocks it has, so none can be locked: take it out of the locked clocks."]
    if lowest < 1 or highest > most_mhz:
        return [f"{label} has clocks up to {most_mhz} MHz, and {lowest} to {highest} was asked for: stay within."]
    return []


def deviations(wanted: Settings, cards: t.Sequence[Card], record: Settings | None) -> list[str]:
    """Return one phrase for each setting that is not in force.

    `record` is what was applied last (or None): NVML cannot tell which clocks are locked. It can tell that a driver
    was reloaded since, because that switches persistence mode off.
    """
    by_id = {card["id"]: card for card in cards}
    before = {entry["id"]: entry for entry in record["cards"]} if record else {}
    found = []
    for asked in wanted["cards"]:
        card = by_id.get(asked["id"])
        if card is None:
            found.append(f"{asked['id']} is not there")
            continue
        label = f"{card['name']} ({card['id']})"
        mode, there = asked["persistence_mode"], card["persistence_mode"]
        if None not in (mode, there) and mode is not there:  # one that NVML does not know cannot be set
            found.append(f"persistence mode of {label} is {'off' if mode else 'on'}")
        watts = asked["power_limit_watts"]
        if watts is not None and not same_watts(card["power_limit_watts"], watts):
            found.append(f"power limit of {label} is {_plain(card['power_limit_watts'])} W, not {_plain(watts)} W")
        clocks = asked["locked_clocks_mhz"]
        if clocks is not None and list(clocks) != before.get(asked["id"], {}).get("locked_clocks_mhz"):
            found.append(f"clocks of {label} are not known to be locked to {clocks[0]} to {clocks[1]} MHz")
    return [*found, *(f"{card_id} still has earlier settings" for card_id in leftovers(wanted, record))]


def leftovers(wanted: Settings, record: Settings | None) -> list[str]:
    """Return the UUIDs of cards with settings of an earlier time that nothing asks for any more."""
    keys, before = ("power_limit_watts", "locked_clocks_mhz"), record["cards"] if record else []
    asked = {(card["id"], key) for card in wanted["cards"] for key in keys if card[key] is not None}
    had = {(card["id"], key): None for card in before for key in keys if card.get(key) is not None}
    return list(dict.fromkeys(card_id for card_id, key in had if (card_id, key) not in asked))


def same_watts(one: t.Any, other: t.Any) -> bool:
    """Whether two power limits are the same; gpu_facts rounds to a tenth of a watt."""
    return one is not None and other is not None and abs(float(one) - float(other)) < 0.1


def _is_number(value: t.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: t.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(number: t.Any) -> str:
    """350.0 as 350."""
    return f"{number:g}" if _is_number(number) else str(number)


# --- NVML ------------------------------------------------------------------------------------------------------------


def open_nvml(nvml: t.Any, wait_seconds: float = 0.0) -> None:
    """Initialise NVML, waiting for a driver that is still being loaded; NoDriverError where it does not come."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            nvml.nvmlInit()
            return
        except nvml.NVMLError as error:
            if error.value not in _COMING or time.monotonic() >= deadline:
                raise NoDriverError(
                    f"NVML does not answer ({error}, NVML error {error.value}): see what 'nvidia-smi' says."
                ) from error
        time.sleep(1)


def read_cards(nvml: t.Any, lost: list[str] | None = None) -> list[dict[str, t.Any]]:
    """Return the cards that answer, each with its NVML handle as `handle`, in NVML's order; name others in `lost`."""
    cards = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            card_id, name = _text(nvml.nvmlDeviceGetUUID, handle), _text(nvml.nvmlDeviceGetName, handle)
        except nvml.NVMLError as error:
            if lost is not None:
                lost.append(f"a card ({error}, NVML error {error.value})")
            continue
        limits = _ask(nvml, "nvmlDeviceGetPowerManagementLimitConstraints", handle) or (None, None)
        mode = _ask(nvml, "nvmlDeviceGetPersistenceMode", handle)
        cards.append({
            "handle": handle,
            "id": card_id,
            "name": name,
            "power_limit_watts": _watts(_ask(nvml, "nvmlDeviceGetPowerManagementLimit", handle)),
            "power_limit_min_watts": _watts(limits[0]),
            "power_limit_max_watts": _watts(limits[1]),
            "power_limit_default_watts": _watts(_ask(nvml, "nvmlDeviceGetPowerManagementDefaultLimit", handle)),
            "clock_graphics_max_mhz": _ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, _GRAPHICS_CLOCK),
            "persistence_mode": None if mode is None else bool(mode),
        })
    return cards


def apply(nvml: t.Any, wanted: Settings, record: Settings | None) -> Settings:
    """Put the settings into force and return the new record.

    Everything is checked before anything is changed. Cards that `record` knows and `wanted` does not name are set back.
    When a card refuses, power limits and persistence modes that were changed before are set back, and PowerError is
    raised.
    """
    cards = read_cards(nvml)
    wrong = problems(wanted, cards)
    if wrong:
        raise PowerError(" ".join(wrong))
    by_id = {card["id"]: card for card in cards}
    named = [entry["id"] for entry in wanted["cards"]]
    for entry in record["cards"] if record else []:
        if entry["id"] in leftovers(wanted, record) and entry["id"] in by_id:
            _undo(nvml, by_id[entry["id"]], entry if entry["id"] not in named else {})
    modes = {entry["id"]: entry.get("persistence_before") for entry in record["cards"]} if record else {}
    changed: list[Card] = []
    applied = []
    try:
        for asked in wanted["cards"]:
            card = by_id[asked["id"]]
            handle = card["handle"]
            changed.append(card)
            # first: without it the driver forgets the rest as soon as nothing uses the card
            if asked["persistence_mode"] and card["persistence_mode"] is False:
                _change(nvml, card, "persistence mode", "nvmlDeviceSetPersistenceMode", handle, 1)
            if asked["power_limit_watts"] is not None:
                milliwatts = round(asked["power_limit_watts"] * 1000)
                _change(nvml, card, "power limit", "nvmlDeviceSetPowerManagementLimit", handle, milliwatts)
            clocks = asked["locked_clocks_mhz"]
            if clocks is not None:
                _change(nvml, card, "locked clocks", "nvmlDeviceSetGpuLockedClocks", handle, *clocks)
            if asked["persistence_mode"] is False and card["persistence_mode"]:
                _change(nvml, card, "persistence mode", "nvmlDeviceSetPersistenceMode", handle, 0)
            earlier = modes.get(card["id"])
            applied.append({**asked, "persistence_before": card["persistence_mode"] if earlier is None else earlier})
        # persistence mode switched off may have cost the rest, so only what is to last is compared
        new: Settings = {"schema": SCHEMA, "cards": applied}
        still = deviations(wanted, read_cards(nvml), new)
        if still:
            raise PowerError(f"The driver took the settings, but {'; '.join(still)}: read 'dmesg | grep -i nvrm'.")
    except PowerError:
        for touched in changed:
            watts = touched["power_limit_watts"]
            if watts is not None:
                _ask(nvml, "nvmlDeviceSetPowerManagementLimit", touched["handle"], round(watts * 1000))
            if touched["persistence_mode"] is False:
                _ask(nvml, "nvmlDeviceSetPersistenceMode", touched["handle"], 0)
        raise
    return new


def reset(nvml: t.Any, record: Settings) -> list[str]:
    """Set the cards of a record back to the driver's own limits and clocks, and persistence mode to what it was.

    Returns the UUIDs of the cards that are not there any more, which have nothing to set back.
    """
    by_id = {card["id"]: card for card in read_cards(nvml)}
    for entry in record["cards"]:
        card = by_id.get(entry["id"])
        if card is not None:
            _undo(nvml, card, entry)
    return [entry["id"] for entry in record["cards"] if entry["id"] not in by_id]


def _undo(nvml: t.Any, card: Card, entry: t.Mapping[str, t.Any]) -> None:
    """Undo what was applied to a card; `entry` of the record says whether persistence mode is part of it."""
    default = card["power_limit_default_watts"]
    if default is not None and not same_watts(card["power_limit_watts"], default):
        _change(
            nvml, card, "power limit", "nvmlDeviceSetPowerManagementLimit", card["handle"], round(default * 1000)
        )
    # a card that cannot lock clocks has none to reset
    _ask(nvml, "nvmlDeviceResetGpuLockedClocks", card["handle"])
    if entry.get("persistence_before") is False and entry.get("persistence_mode"):
        _change(nvml, card, "persistence mode", "nvmlDeviceSetPersistenceMode", card["handle"], 0)


def _change(nvml: t.Any, card: Card, what: str, function: str, *arguments: t.Any) -> None:
    try:
        getattr(nvml, function)(*arguments)
    except nvml.NVMLError as error:
        cure = "run as root" if error.value == 4 else "leave that setting out for this card"
        raise PowerError(
            f"{card['name']} ({card['id']}) refuses its {what} ({error}, NVML error {error.value}): {cure}."
        ) from error


def _ask(nvml: t.Any, function: str, *arguments: t.Any) -> t.Any:
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def _text(ask: t.Any, handle: t.Any) -> str:
    """Return a string of NVML. nvidia-ml-py decodes strictly; what it wraps gives the bytes, which may be no UTF-8."""
    try:
        text = ask(handle)
    except UnicodeDecodeError:
        text = getattr(ask, "__wrapped__", repr)(handle)
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 1)


def read_settings(path: str) -> Settings | None:
    """Return settings or a record of a file, None where there is none; PowerError when it is damaged."""
    try:
        with open(path, encoding="utf-8") as handle:
            data = json.load(handle)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as exc:
        raise PowerError(f"{path} cannot be read ({exc}): run the role gpu_power to write it again.") from exc
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("cards"), list):
        raise PowerError(f"{path} is not of schema {SCHEMA}: run the role gpu_power to write it again.")
    if not all(isinstance(one, dict) and set(one) >= _FIELDS and isinstance(one["id"], str) for one in data["cards"]):
        raise PowerError(f"{path} has a card that lacks a setting: run the role gpu_power to write it again.")
    return data


def write_record(path: str, record: Settings) -> None:
    """Write a record whole or not at all; it is on the disk when this returns."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(record, handle, indent=2, sort_keys=True)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def apply_file(nvml: t.Any, settings_path: str, record_path: str | None) -> None:
    """Put the settings of a file into force and keep what was applied."""
    wanted = read_settings(settings_path)
    if wanted is None:
        raise PowerError(f"There is no {settings_path}: run the role gpu_power to write it.")
    lost: list[str] = []
    answering = {card["id"] for card in read_cards(nvml, lost)}
    gone = [entry for entry in wanted["cards"] if lost and entry["id"] not in answering]
    here = {**wanted, "cards": [entry for entry in wanted["cards"] if entry not in gone]}
    new = apply(nvml, here, read_settings(record_path) if record_path else None)
    if record_path:
        write_record(record_path, new)
    if gone:  # the others have theirs: the power supply stays within its limits
        raise PowerError(" ".join(problems({**wanted, "cards": gone}, [], lost)))


def reset_file(nvml: t.Any, record_path: str) -> None:
    """Undo what a record says was applied, and remove the record."""
    reset(nvml, read_settings(record_path) or {"schema": SCHEMA, "cards": []})
    os.unlink(record_path)


def main() -> int:
    """Apply or undo the settings of a file; what mixed-gpu-power.service runs. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Put power limits, locked clocks and persistence mode into force.")
    parser.add_argument("action", choices=["apply", "reset"])
    parser.add_argument("--settings", help="file with what is wanted (apply)")
    parser.add_argument("--record", help="file that keeps what was applied")
    parser.add_argument("--wait-seconds", type=float, default=0.0, help="how long to wait for the driver")
    given = parser.parse_args()
    if given.action == "reset" and not (given.record and os.path.exists(given.record)):
        return 0
    try:
        import pynvml  # noqa: PLC0415

        open_nvml(pynvml, given.wait_seconds)
        try:
            if given.action == "reset":
                reset_file(pynvml, given.record)
            else:
                apply_file(pynvml, given.settings, given.record)
        finally:
            pynvml.nvmlShutdown()
    except ImportError:
        sys.stderr.write("This Python has no nvidia-ml-py: run the role host_python.\n")
        return 1
    except PowerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
