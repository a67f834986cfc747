# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Draws the measured splits of a recorded deployment as SVG. Private to this collection.

Needs matplotlib, on the controller. Colours follow the reader's light or dark preference and can be told apart by
people who are colour-blind.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import typing as t

from .._base import text
from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import chart, recorded

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


def draw(entry: Mapping, panels: t.Sequence[str]) -> str:
    """Return the chart of a recorded entry as an SVG element, a panel per quantity; the same input gives the same text.

    With two devices each panel shows a quantity over the layers on the first device; with one or more than two, a bar
    per measured split. Several charts can stand on one page. Raises UserError when matplotlib is missing.
    """

    def paint(axes: t.Any, index: int) -> None:
        # with experts in RAM, splits say less than how many blocks are there
        if len(entry["devices"]) == 2 and not entry.get("experts_in_ram"):
            _draw_line(axes, entry, panels[index])
        else:
            _draw_bars(axes, entry, panels[index])

    return svg(paint, len(panels), _title(entry, panels))


def svg(paint: t.Callable[[t.Any, int], None], panels: int, title: str) -> str:
    """Return a figure of so many panels as an SVG element; I(paint) draws on the axes of each.

    Raises UserError when matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            f"matplotlib is missing on the controller ({error}); install it into the Python that runs ansible-playbook"
            " (python -m pip install matplotlib), or set report_chart to false"
        ) from error
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.7 * panels, 3.9), layout="constrained")
        FigureCanvasSVG(figure)
        for index in range(panels):
            paint(figure.add_subplot(1, panels, index + 1), index)
        _legend(figure, panels)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _finish(drawn.getvalue(), title)


def _legend(figure: t.Any, panels: int) -> None:
    """Draw one legend for all panels."""
    handles: Json = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=min(len(handles), 2 if panels == 1 else 3),
            fontsize=9,
        )


def _title(entry: Mapping, panels: t.Sequence[str]) -> str:
    words = [recorded.axis_label(entry, panel).partition(",")[0] for panel in panels]
    return f"{recorded.model_name(entry)}: measured {' and '.join(words)} by split"


def _draw_line(axes: t.Any, entry: Mapping, panel: str) -> None:
    """Draw one quantity over the layers on the first of two devices."""
    span = chart.chart_span(entry)
    points = chart.chart_points(entry, panel)
    measured = [point for point in points if point["mean"] is not None]
    if measured:
        _draw_points(axes, measured, MEASURED, "o", 6, "measured (lowest to highest)")
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    line = chart.chart_line(entry, panel, span)
    if line:
        xs, ys = zip(*line, strict=True)
        axes.plot(xs, ys, color=MEASURED, linewidth=1.2, label="fitted", zorder=2)
    _mark_splits(axes, entry, measured)
    for start, end in chart.infeasible_bands(entry, span):
        axes.axvspan(
            start, end, facecolor="none", edgecolor=BARRED, hatch="///", linewidth=0, label="does not fit in memory",
            zorder=0.5,
        )  # fmt: skip
    _mark_failed(axes, [point["x"] for point in points if point["status"] != "ok"])
    _label_axes(axes, entry, panel, span)


def _mark_splits(axes: t.Any, entry: Mapping, measured: t.Sequence[Mapping]) -> None:
    """Mark the engine's default split and the chosen one, measured or not."""
    decision = entry["decision"]
    default = f"{recorded.engine_name(entry)}'s default"
    for layers, colour, marker, label in (
        (decision.get("default_layers"), DEFAULT, "s", default),
        (decision["layers"], CHOSEN, "D", "chosen"),
    ):
        if layers is None:
            continue
        marked = [point for point in measured if point["layers"] == list(layers)]
        words = f"{label} ({text.vector(layers)})"
        if marked:
            _draw_points(axes, marked, colour, marker, 8, words)
        else:
            axes.axvline(
                layers[0], color=colour, linestyle="--", linewidth=1.4, label=f"{words}, no value", zorder=1.5
            )


def _mark_failed(axes: t.Any, failed: t.Sequence[int]) -> None:
    """Mark failed splits on the axis: they have no value to show."""
    if failed:
        axes.plot(
            failed, [0.03] * len(failed), transform=axes.get_xaxis_transform(), linestyle="none", marker="x",
            markersize=8, markeredgewidth=2, color=INK, label="failed when measured",
        )  # fmt: skip


def _label_axes(axes: t.Any, entry: Mapping, panel: str, span: tuple[int, int]) -> None:
    from matplotlib.ticker import MaxNLocator

    first, second = (device["device"] for device in entry["devices"])
    axes.set_xlim(span[0] - 0.5, span[1] + 0.5)
    axes.margins(y=0.12)
    axes.set_xlabel(f"layers on {first} (the rest of {sum(entry['decision']['layers'])} on {second})")
    label = recorded.axis_label(entry, panel)
    axes.set_ylabel(label.replace(", ", ",\n", 1) if len(label) > LABEL_CHARACTERS else label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))


def _draw_points(
    axes: t.Any, points: t.Sequence[Mapping], colour: str, marker: str, size: int, label: str
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


def _draw_bars(axes: t.Any, entry: Mapping, panel: str) -> None:
    """Draw one bar per measured split, in order of the table, so that any number of devices can be shown."""
    decision = entry["decision"]
    points = chart.chart_points(entry, panel)
    for index, point in enumerate(points):
        if point["mean"] is None:
            axes.text(0, index, f" {point['status'].replace('_', ' ')}", va="center", fontsize=9)
            continue
        colour, label, hatch = MEASURED, "measured (lowest to highest)", None
        if point["chosen"]:
            colour, label = CHOSEN, f"chosen ({text.vector(decision['layers'])})"
        elif point["default"]:
            colour, hatch = DEFAULT, "//"
            label = f"{recorded.engine_name(entry)}'s default ({text.vector(decision['default_layers'])})"
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
    axes.set_yticks(range(len(points)), [point["name"] for point in points])
    axes.set_ylabel(f"layers on {', '.join(device['device'] for device in entry['devices'])}")
    axes.set_xlabel(recorded.axis_label(entry, panel))
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
