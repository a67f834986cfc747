"""The box, its lender, and their upgrades."""

from __future__ import annotations

import contextlib
import json

import pytest
import testinfra
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab_upgrades

CURRENT = "readlink /opt/llama.cpp/current"
#: A program that fails at whatever measures, and says what it is as before.
FAILS = "#!/bin/sh\ncase \" $* \" in *' -m '*) echo 'no measuring here' >&2; exit 1;; esac\nexec \"$0.real\" \"$@\"\n"
UNIT = "ggml-rpc-server-lent.service"
#: The hosts share this machine with whatever else it does: only what is many times slower may count, and loads that
#: differ too much to tell are no reason to go back.
WIDER = json.dumps({
    "revalidate_tolerance_percent": 500, "revalidate_ignore_contention": True,
    "upgrade_accept": ["ok", "improved", "inconclusive"],
})  # fmt: skip


class Group(lab_upgrades.Upgrades):
    """Upgrades of the box and the lender."""

    def __init__(self, host, lender) -> None:
        super().__init__(host, lab.Controller("lenders", lab_upgrades.PLAYBOOK))
        self.lender = lender
        self.options = (
            f"--inventory={self.controller.directory}/inventory",
            f"--extra-vars=@{self.controller.project}/molecule/default/variables.yml",
            f"--extra-vars=@{self.controller.directory}/variables.yml",
            f"--extra-vars={WIDER}",
        )

    def run(self, *options, component="llama_cpp"):
        """Run the upgrade over both to its end."""
        return super().run(*self.options, *options, component=component)

    def site(self, *options):
        """Run the playbook site over both to its end."""
        return self.controller.play(*self.options, *options, playbook="homelab.mixed_gpu.site")

    def builds(self):
        """Return the builds of both hosts that the links lead to."""
        return [one.check_output(CURRENT) for one in (self.host, self.lender)]

    def runs_on(self, host, unit):
        """Return the directory of the build that a unit of a host runs."""
        pid = host.check_output(f"systemctl show -p MainPID --value {unit}")
        return host.check_output(f"tr '\\0' '\\n' < /proc/{pid}/cmdline | grep -m1 ^/opt/llama.cpp/").split("/")[3]

    def both_serve(self, builds):
        """Whether both hosts run these builds, and what is served answers over both."""
        body = '{"prompt": "one two", "n_predict": 4, "cache_prompt": false, "ignore_eos": true}'
        answer = self.host.run(f"{lab.CURL} --max-time 120 http://127.0.0.1:8080/completion -d '{body}'").stdout
        units = [(self.host, "llama-server"), (self.host, "ggml-rpc-server-fast"), (self.lender, UNIT)]
        return (
            self.builds() == builds
            and [self.runs_on(*one) for one in units] == [builds[0], builds[0], builds[1]]
            and self.host.check_output("systemctl show --value -p StatusText llama-server") == "all lenders answer"
            and json.loads(answer or "{}").get("tokens_predicted") == 4
        )


@pytest.fixture(scope="session")
def lender():
    """Return the host that lends."""
    return testinfra.get_host(f"{lab.Controller.engine}://{lab.Controller.host_name}-lender")


@pytest.fixture
def group(host, lender) -> Group:
    """Return the upgrades of both."""
    return Group(host, lender)


@pytest.fixture
def unmeasurable(host):
    """Return a context in which a build of the box does not measure, whatever else it does."""

    @contextlib.contextmanager
    def _broken(build):
        program = f"/opt/llama.cpp/{build}/bin/llama-bench"
        written = f"cat > {program} <<'EOF'\n{FAILS}EOF\nchmod 755 {program}"
        host.check_output(f"mv {program} {program}.real && {written}")
        try:
            yield
        finally:
            host.check_output(f"mv {program}.real {program}")

    return _broken


@pytest.fixture
def other(group):
    """Return the version that the hosts do not have, the pinned or the next, and the options that ask for it."""
    pinned = f"b{lab_upgrades.PINNED}"
    if group.builds()[0].startswith(f"{pinned}-"):
        return f"b{lab_upgrades.PINNED + 1}", [lab_upgrades.NEWER]
    return pinned, []
