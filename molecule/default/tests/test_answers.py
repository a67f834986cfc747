"""A device that computes wrong is found, named and not served, neither by a running server nor at a first start."""

from __future__ import annotations

import contextlib
import json

SERVER, DEVICE, ID = "llama-server.service", "ggml-rpc-server-slow.service", "127.0.0.1:50053"
HEALTHY = "curl -s -f http://127.0.0.1:8080/health"
MARK = "/var/lib/mixed_gpu/wrong_answers"
LIBRARY, DROP_IN = "/usr/local/lib/test-fault.so", f"/run/systemd/system/{DEVICE}.d/fault.conf"
#: Loaded into the device's server: every other sum of a product of matrices is zero.
FAULT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
typedef void dot(int, float *, size_t, const void *, size_t, const void *, size_t, int);
dot ggml_vec_dot_q8_0_q8_0;
void ggml_vec_dot_q8_0_q8_0(
    int n, float *sum, size_t bs, const void *x, size_t bx, const void *y, size_t by, int rows) {
    static _Thread_local unsigned calls;
    static dot *right;
    if (!right) right = (dot *) dlsym(RTLD_NEXT, "ggml_vec_dot_q8_0_q8_0");
    right(n, sum, bs, x, bx, y, by, rows);
    if (++calls % 2) *sum = 0;
}
"""


@contextlib.contextmanager
def _computing_wrong(host):
    """Let the slow device compute wrong; llama-server is restarted with it, as it depends on it."""
    host.run_expect([0], "printf '%%s' %s | gcc -x c -O2 -shared -fPIC -o %s -", FAULT, LIBRARY)
    host.run_expect([0], f"mkdir -p {DROP_IN.rpartition('/')[0]}")
    host.run_expect([0], f"printf '[Service]\\nEnvironment=LD_PRELOAD={LIBRARY}\\n' > {DROP_IN}")
    restart = f"systemctl daemon-reload && systemctl restart {DEVICE}"
    try:
        host.run_expect([0], restart)
        yield
    finally:
        host.run(f"rm -f {DROP_IN} {LIBRARY}")
        host.run_expect([0], restart)


def _answers(host):
    """Return the newest check."""
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    return json.loads(host.file(f"/var/lib/mixed_gpu/answers/{fact['active']}.json").content_string)


def _assert_off(host):
    """Nobody starts the server: neither systemd by itself nor a person."""
    assert host.file(MARK).exists
    host.run_expect([0], f"systemctl start {SERVER}")
    assert not host.service(SERVER).is_running
    assert host.run(f"systemctl show -p ConditionResult --value {SERVER}").stdout.strip() == "no"


def test_the_answers_were_checked_before_they_were_served(host):
    found = _answers(host)
    assert (found["status"], found["reason"]) == ("ok", None)
    assert [one["id"] for one in found["compared"]] == ["127.0.0.1:50052", ID]
    assert all(one["agrees"] for one in found["compared"])
    assert not host.file(MARK).exists


def test_a_device_that_computes_wrong_is_found_named_and_not_served(host, controller, revalidate, eventually):
    reason = f"{ID} computes wrong: log-probabilities differ by"
    cure = "build llama.cpp again on the host of the RPC server (role llama_cpp)"
    with _computing_wrong(host):
        eventually(lambda: host.run(HEALTHY).rc == 0)  # nobody sees it from outside
        code, result, output = revalidate("--extra-vars={revalidate_measure: 'true', revalidate_answers_days: 0}")
        assert (code, result["verdict"]) == (2, "broken"), output[-4000:]
        check = next(one for one in result["checks"] if one["name"] == "answers")
        assert check["verdict"] == "broken" and reason in check["detail"] and cure in check["detail"]
        _assert_off(host)
        # a first start: nothing is known of the answers
        host.run_expect([0], "rm -r /var/lib/mixed_gpu/answers")
        done = controller.play(playbook="serve.yml")
        said = " ".join(done.stdout.split())
        assert done.returncode == 2 and f"BROKEN, not served: {reason}" in said and cure in said, done.stdout[-4000:]
        assert (_answers(host)["status"], _answers(host)["culprits"]) == ("wrong", [ID])
        _assert_off(host)
    done = controller.play(playbook="serve.yml")
    assert done.returncode == 0, done.stdout[-4000:]
    assert _answers(host)["status"] == "ok" and not host.file(MARK).exists
    assert host.service(SERVER).is_running and host.run(HEALTHY).rc == 0
