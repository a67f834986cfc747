# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The HTML page of a recorded deployment. Private to this collection. Needs Jinja, and matplotlib for the charts.

Every value is escaped, which the template module of Ansible cannot do.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.types import Mapping
from . import chart, drawing, trend_drawing, trend_rows
from .recorded import QUANTITIES
from .view import Seen, report_view


def render(
    entry: Mapping, template: str, seen: Seen, expectations: t.Sequence[Mapping], panels: t.Sequence[str], host: str,
    url: str, connect: str,
) -> str:  # fmt: skip
    """Return the page as text.

    The template gets C(view) (report_view), C(charts) (SVG by name of the panel), C(drawn), whether charts were asked
    for, and C(trend) (SVG of the revalidations, or nothing). Raises KeyError, TypeError or ValueError for an entry that
    cannot be read, UserError for the template.
    """
    from markupsafe import Markup

    unknown = [panel for panel in panels if panel not in QUANTITIES]
    if unknown:
        raise UserError(f"unknown panel {', '.join(map(str, unknown))}; choose from {', '.join(QUANTITIES)}")
    view = report_view(entry, seen, expectations, host, url, connect)
    charts = {panel: Markup(drawing.draw(entry, [panel])) for panel in panels if chart.has_points(entry, panel)}
    trend = trend_rows.compared(seen.recorded) if panels else []
    drawn = Markup(trend_drawing.draw(trend)) if len(trend) > 1 else ""
    return filled(template, view=view, charts=charts, drawn=bool(panels), trend=drawn)


def filled(template: str, **values: t.Any) -> str:
    """Return a template with its values, each of them escaped. Raises UserError for the template."""
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        return environment.from_string(str(template)).render(**values)
    except TemplateError as error:
        raise UserError(f"the template cannot be rendered: {error}; correct it") from error
