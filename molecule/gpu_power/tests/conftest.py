"""The controller's side of the tests, and what they know of the cards of tests/fake_nvml/profiles/generating.txt."""

from __future__ import annotations

import re
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
# index 0 is the RTX 3090, in the first slot
IN_FORCE = {
    "0.persistence_mode": "1", "0.power_limit_milliwatts": "280000", "0.locked_clocks_mhz": "210,1700",
    "1.persistence_mode": "1", "1.power_limit_milliwatts": "315000",
}  # fmt: skip
UNIT = "mixed-gpu-power.service"


def changed(output: str) -> int:
    """Return how many tasks of a play changed something."""
    return int(re.search(r"changed=(\d+)", output).group(1))


def words(output: str) -> str:
    """Return the output of a play without its line breaks: Ansible breaks long lines."""
    return " ".join(output.split())


@pytest.fixture(scope="session")
def controller() -> lab.Controller:
    """Return the controller."""
    return lab.Controller("gpu_power", "power.yml")


@pytest.fixture(scope="session")
def eventually() -> t.Callable[..., None]:
    """Return a function that waits until a condition holds, at most so many seconds."""
    return lab.eventually


@pytest.fixture
def kept(host: t.Any) -> t.Callable[[], dict[str, str]]:
    """Return a function that tells what the driver keeps now."""

    def read() -> dict[str, str]:
        file = host.file("/run/fake_nvml")
        return dict(line.split("=") for line in file.content_string.splitlines()) if file.exists else {}

    return read
