# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters on revalidations. Each is documented in a file of its name beside this one."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError


def revalidation_failure(reason: t.Any, host: str, at: str, found: t.Any = None) -> dict[str, t.Any]:
    """Return the verdict on a host on which revalidating failed."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict

    return verdict.broken(host, at, verdict.failure_text(reason), found)


def revalidation_report(hosts: t.Any, unreachable: t.Any) -> dict[str, t.Any]:
    """Return the verdict over all hosts; AnsibleFilterError names the field that is wrong."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict

    try:
        return verdict.together(hosts, unreachable)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(
            f"revalidation_report: {what}; docs/data_formats.md says what belongs there"
        ) from None


class FilterModule:
    """Filters on revalidations."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"revalidation_failure": revalidation_failure, "revalidation_report": revalidation_report}
