# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: split_chart
short_description: Draw the measured splits of a tuning
version_added: 0.1.0
description:
  - Draws one entry of C(ansible_local.mixed_gpu.models) and returns an SVG image as text, ready to be put into an
    HTML page.
  - With two devices each panel shows a measured quantity over the number of layers on the first device, with error
    bars, the fitted line, what does not fit in memory, the engine's default split and the chosen one.
    With one device or more than two it shows one bar per measured split.
  - The same input gives the same text. Several charts can stand on one page, because their identifiers differ.
  - Colours follow the reader's light or dark preference and can be told apart by people who are colour-blind.
requirements:
  - matplotlib, on the controller
options:
  _input:
    description: One entry of C(ansible_local.mixed_gpu.models), see C(docs/data_formats.md).
    type: dict
    required: true
  panels:
    description:
      - What to show, one panel each.
      - V(objective) is the time of what was optimised, for example one whole request.
    type: list
    elements: str
    choices: [decode, prefill, objective]
    default: [decode, prefill]
  feasible:
    description:
      - Every split that memory allows, as C(split_plan) returns it under C(feasible).
      - Without it the list in the entry is used, and where there is none, only splits that ran out of memory when
        measured are shown.
    type: list
    elements: raw
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Draw the decode panel alone
  ansible.builtin.copy:
    content: "{{ recorded | homelab.mixed_gpu.split_chart(['decode']) }}"
    dest: decode.svg
    mode: "0644"
  vars:
    recorded: "{{ ansible_local.mixed_gpu.models[ansible_local.mixed_gpu.active] }}"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: An C(svg) element, without an XML declaration.
  type: str
"""

import hashlib
import io
import json
import re
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import text
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import report_page

# What is drawn in the left colour is shown in the two others: light and dark, both from the Okabe-Ito palette.
COLOURS: t.Final = {
    "ink": ("#010101", "#1f2328", "#e6e8eb"),
    "muted": ("#020202", "#6b7078", "#9aa0a8"),
    "grid": ("#030303", "#e3e5e8", "#33373d"),
    "barred": ("#040404", "#b9bdc4", "#5a6069"),
    "measured": ("#050505", "#0072b2", "#56b4e9"),
    "chosen": ("#060606", "#d55e00", "#e69f00"),
    "default": ("#070707", "#00795a", "#2bc79a"),
    "page": ("#080808", "#ffffff", "#16181c"),
}
INK: t.Final = COLOURS["ink"][0]
MUTED: t.Final = COLOURS["muted"][0]
GRID: t.Final = COLOURS["grid"][0]
BARRED: t.Final = COLOURS["barred"][0]
MEASURED: t.Final = COLOURS["measured"][0]
CHOSEN: t.Final = COLOURS["chosen"][0]
DEFAULT: t.Final = COLOURS["default"][0]
PAGE: t.Final = COLOURS["page"][0]

SETTINGS: t.Final[dict[t.Any, t.Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "homelab.mixed_gpu",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.color": BARRED,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": "none",
}

#: A longer label of the vertical axis does not fit on one line.
LABEL_CHARACTERS: t.Final = 40


def split_chart(
    entry: t.Mapping[str, t.Any],
    panels: t.Sequence[str] = ("decode", "prefill"),
    feasible: t.Sequence[t.Any] | None = None,
) -> str:
    """Return the chart of a recorded entry as SVG text.

    Raises AnsibleFilterError when matplotlib is missing, a panel is unknown, or the entry has no decision.
    """
    if not isinstance(entry, t.Mapping) or not isinstance(entry.get("decision"), t.Mapping):
        raise AnsibleFilterError(
            "split_chart: the input has no decision; give it one entry of ansible_local.mixed_gpu.models, recorded by"
            " split_tuning."
        )
    unknown = [panel for panel in panels if panel not in report_page.QUANTITIES]
    if unknown or not panels:
        raise AnsibleFilterError(
            f"split_chart: unknown panel {', '.join(map(str, unknown)) or '(none)'};"
            f" choose from {', '.join(report_page.QUANTITIES)}."
        )
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AnsibleFilterError(
            f"split_chart: matplotlib is missing on the controller ({error}); install it into the Python that runs"
            " ansible-playbook: python -m pip install matplotlib"
        ) from error

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(5.4 * len(panels), 4.1), layout="constrained")
        FigureCanvasSVG(figure)
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            if len(entry["devices"]) == 2:
                _draw_line(axes, entry, panel, feasible)
            else:
                _draw_bars(axes, entry, panel)
        handles: dict[str, t.Any] = {}
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        if handles:
            figure.legend(
                list(handles.values()),
                list(handles),
                loc="outside lower center",
                ncols=min(len(handles), 2 if len(panels) == 1 else 3),
                fontsize=9,
            )
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _finish(text.getvalue(), _title(entry, panels))


def _title(entry: t.Mapping[str, t.Any], panels: t.Sequence[str]) -> str:
    words = [report_page.axis_label(entry, panel).partition(",")[0] for panel in panels]
    return f"{report_page.model_name(entry)}: measured {' and '.join(words)} by split"


def _draw_line(axes: t.Any, entry: t.Mapping[str, t.Any], panel: str, feasible: t.Sequence[t.Any] | None) -> None:
    """Draw one quantity over the slots on the first of two devices."""
    from matplotlib.ticker import MaxNLocator

    decision = entry["decision"]
    span = report_page.chart_span(entry, feasible)
    points = report_page.chart_points(entry, panel)
    measured = [point for point in points if point["mean"] is not None]
    if measured:
        _draw_points(axes, measured, MEASURED, "o", 6, "measured (lowest to highest)")
    line = report_page.chart_line(entry, panel, span)
    if line:
        axes.plot(
            [x for x, dummy in line], [y for dummy, y in line], color=MEASURED, linewidth=1.2, label="fitted", zorder=2
        )
    for layers, colour, marker, size, label in (
        (decision.get("default_layers"), DEFAULT, "s", 8, f"{report_page.engine_name(entry)}'s default"),
        (decision["layers"], CHOSEN, "D", 8, "chosen"),
    ):
        marked = [point for point in measured if layers is not None and point["layers"] == list(layers)]
        if marked:
            _draw_points(axes, marked, colour, marker, size, f"{label} ({text.vector(layers)})")
        elif layers is not None:
            words = f"{label} ({text.vector(layers)}), no value"
            axes.axvline(layers[0], color=colour, linestyle="--", linewidth=1.4, label=words, zorder=1.5)
    for start, end in report_page.infeasible_bands(entry, span, feasible):
        axes.axvspan(
            start,
            end,
            facecolor="none",
            edgecolor=BARRED,
            hatch="///",
            linewidth=0,
            label="does not fit in memory",
            zorder=0.5,
        )
    # The crosses of failed splits stand on the axis: they have no value to show.
    failed = [point["x"] for point in points if point["status"] != "ok"]
    if failed:
        axes.plot(
            failed,
            [0.03] * len(failed),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="x",
            markersize=8,
            markeredgewidth=2,
            color=INK,
            label="failed when measured",
        )
    if not measured:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    first, second = (device["device"] for device in entry["devices"])
    axes.set_xlim(span[0] - 0.5, span[1] + 0.5)
    axes.margins(y=0.12)
    axes.set_xlabel(f"layers on {first} (the rest of {sum(decision['layers'])} on {second})")
    label = report_page.axis_label(entry, panel)
    axes.set_ylabel(label.replace(", ", ",\n", 1) if len(label) > LABEL_CHARACTERS else label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))


def _draw_points(
    axes: t.Any, points: t.Sequence[t.Mapping[str, t.Any]], colour: str, marker: str, size: int, label: str
) -> None:
    means = [point["mean"] for point in points]
    below = [max(0.0, point["mean"] - point["low"]) if point["low"] is not None else 0.0 for point in points]
    above = [max(0.0, point["high"] - point["mean"]) if point["high"] is not None else 0.0 for point in points]
    axes.errorbar(
        [point["x"] for point in points],
        means,
        yerr=[below, above],
        fmt=marker,
        markersize=size,
        color=colour,
        markeredgecolor=PAGE,
        markeredgewidth=0.8,
        elinewidth=1.6,
        capsize=4,
        label=label,
        zorder=3 + size / 10,
    )


def _draw_bars(axes: t.Any, entry: t.Mapping[str, t.Any], panel: str) -> None:
    """Draw one bar per measured split, in order of the table, so that any number of devices can be shown."""
    decision = entry["decision"]
    points = report_page.chart_points(entry, panel)
    for index, point in enumerate(points):
        if point["mean"] is None:
            axes.text(0, index, f" {point['status'].replace('_', ' ')}", va="center", fontsize=9)
            continue
        colour, label, hatch = MEASURED, "measured (lowest to highest)", None
        if point["layers"] == list(decision["layers"]):
            colour, label = CHOSEN, f"chosen ({text.vector(decision['layers'])})"
        elif point["layers"] == list(decision.get("default_layers") or []):
            colour, hatch = DEFAULT, "//"
            label = f"{report_page.engine_name(entry)}'s default ({text.vector(decision['default_layers'])})"
        low = point["low"] if point["low"] is not None else point["mean"]
        high = point["high"] if point["high"] is not None else point["mean"]
        axes.barh(
            index,
            point["mean"],
            height=0.62,
            facecolor=colour,
            edgecolor=PAGE,
            hatch=hatch,
            label=label,
            ecolor=INK,
            capsize=3,
            xerr=[[max(0.0, point["mean"] - low)], [max(0.0, high - point["mean"])]],
        )
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.set_yticks(range(len(points)), [text.vector(point["layers"]) for point in points])
    axes.set_ylabel(f"layers on {', '.join(device['device'] for device in entry['devices'])}")
    axes.set_xlabel(report_page.axis_label(entry, panel))
    axes.margins(x=0.08)


def _finish(svg: str, title: str) -> str:
    """Make matplotlib's file fit for embedding: no prolog, identifiers of its own, colours by preference, a title."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    prefix = "split-chart-" + hashlib.sha256((json.dumps(title) + svg).encode()).hexdigest()[:10]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(\bxlink:href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", svg)
    svg = re.sub(r"<style type=\"text/css\">\*\{", f'<style type="text/css">#{prefix} *{{', svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    for name, colours in COLOURS.items():
        drawn = colours[0]
        svg = svg.replace(f'fill="{drawn}"', f'style="fill: {drawn}"').replace(f": {drawn}", f": var(--{name})")
    light = ";".join(f"--{name}:{colours[1]}" for name, colours in COLOURS.items())
    dark = ";".join(f"--{name}:{colours[2]}" for name, colours in COLOURS.items())
    style = (
        f'<style type="text/css">#{prefix}{{{light};width:100%;height:auto}}'
        f"@media screen and (prefers-color-scheme:dark){{#{prefix}{{{dark}}}}}</style>"
    )
    words = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    head, body = svg.split(">", 1)
    return f'{head} id="{prefix}" role="img" aria-label="{words}"><title>{words}</title>{style}{body}\n'


class FilterModule:
    """Filters that draw."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"split_chart": split_chart}
