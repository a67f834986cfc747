# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters on baselines and revalidations. Each is documented in a file of its name beside this one."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError


def _calling(name: str, function: t.Callable[..., t.Any], *arguments: t.Any) -> t.Any:
    """Return what the function returns; AnsibleFilterError names the field that is wrong."""
    try:
        return function(*arguments)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise AnsibleFilterError(f"{name}: {what}; docs/data_formats.md says what belongs there") from error


def revalidation(observed: t.Any, settings: t.Any) -> dict[str, t.Any]:
    """Return the verdict on a host."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict

    return t.cast("dict[str, t.Any]", _calling("revalidation", verdict.judge, observed, settings))


def revalidation_step(observed: t.Any, limits: t.Any) -> dict[str, t.Any]:
    """Return what a revalidation measures next."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import next_load

    return t.cast("dict[str, t.Any]", _calling("revalidation_step", next_load.step, observed, limits))


def revalidation_failure(reason: t.Any, host: str, at: str) -> dict[str, t.Any]:
    """Return the verdict on a host on which revalidating failed."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict

    return verdict.broken(host, None, at, verdict.failure_text(reason))


def revalidation_report(hosts: t.Any, unreachable: t.Any) -> dict[str, t.Any]:
    """Return the verdict over all hosts."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict

    return t.cast("dict[str, t.Any]", _calling("revalidation_report", verdict.together, hosts, unreachable))


def host_configuration(entry: t.Any, build: str, gpus: t.Any, host: t.Any) -> dict[str, t.Any]:
    """Return what can change the speed of a recorded split."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import baselines

    given = (entry, build, gpus, host)
    return t.cast("dict[str, t.Any]", _calling("host_configuration", baselines.configuration, *given))


class FilterModule:
    """Filters on baselines and revalidations."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {
            "revalidation": revalidation,
            "revalidation_step": revalidation_step,
            "revalidation_failure": revalidation_failure,
            "revalidation_report": revalidation_report,
            "host_configuration": host_configuration,
        }
