# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What llama.cpp sends to a lender and gets back, counted on the wire, beside what is reckoned. No time is measured."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import threading
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import network_links

pytestmark = pytest.mark.live

SHAPE: t.Final = {"blocks": 4, "embedding_length": 256, "feed_forward_length": 256, "vocabulary_size": 2048}
MODEL: t.Final = {"block_count": 4, "embedding_length": 256, "vocabulary_size": 2048}
#: Of such a link a ms is 1000 bytes, and a round trip takes no time.
COUNTED: t.Final = {"round_trip_ms": 0.0, "stalls_ms": 0.0, "to_mb_per_s": 1.0, "from_mb_per_s": 1.0}


class Relay:
    """Passes on what crosses a connection, one connection after the other, and counts it."""

    def __init__(self, endpoint: str) -> None:
        self.target = (endpoint.split(":")[0], int(endpoint.split(":")[1]))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.bytes = {"there": 0, "back": 0}
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _address = self.listener.accept()
            server = socket.create_connection(self.target)
            threading.Thread(target=self._pass, args=(client, server, "there"), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, "back"), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        for one in (source, target):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while part := source.recv(1 << 20):
                self.bytes[way] += len(part)
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


class Crossed(t.NamedTuple):
    """Bytes that crossed a connection."""

    there: int
    back: int


@pytest.fixture(scope="module")
def crossed(
    llama_bin: pathlib.Path, rpc_endpoints: list[str], tmp_path_factory: pytest.TempPathFactory
) -> t.Callable[..., Crossed]:
    """Return a function that tells what crosses to a lender that holds 2 of 4 blocks, with the options of a test."""
    path = str(tmp_path_factory.mktemp("models") / "bytes.gguf")
    random_model.write_model(path, random_model.checked_options({**SHAPE, "context_length": 8192}), "bytes")

    def run(order: str, *options: str, split: str = "2/3") -> Crossed:
        relay = Relay(rpc_endpoints[1])
        command = [
            str(llama_bin / "llama-bench"), "-m", path, "--rpc", f"{rpc_endpoints[0]},{relay.endpoint}", "-dev", order,
            "-ts", split, "-ngl", "99", "-fa", "1", "-ub", "256", "-t", "1", "-r", "1", "--no-warmup", *options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return Crossed(**relay.bytes)

    return run


@pytest.mark.parametrize(("order", "lent"), [("RPC1/RPC0", 0), ("RPC0/RPC1", 1)])
def test_a_prompt_sends_activations_mask_and_graph(
    crossed: t.Callable[..., Crossed], order: str, lent: int
) -> None:
    short, long = (crossed(order, "-p", str(tokens), "-n", "0") for tokens in (256, 2048))
    layers = [2, 3]
    links = [COUNTED if index == lent else None for index in range(2)]

    def reckoned(tokens: int) -> float:
        asked = network_links.work(tokens, 256, 0, 0, True)
        return 1000 * network_links.costs(MODEL, layers, links, asked)[lent].micro_batch_ms * (tokens // 256)

    # weights and the rest of a load are the same in both
    seen = sum(long) - sum(short)
    assert seen == pytest.approx(reckoned(2048) - reckoned(256), rel=0.03)


@pytest.mark.parametrize(("order", "lent"), [("RPC1/RPC0", 0), ("RPC0/RPC1", 1)])
def test_a_token_sends_activations_and_a_lender_behind_gives_logits(
    crossed: t.Callable[..., Crossed], order: str, lent: int
) -> None:
    few, many = (crossed(order, "-p", "0", "-n", str(tokens)) for tokens in (8, 72))
    links = [COUNTED if index == lent else None for index in range(2)]
    asked = network_links.work(1, 256, 0, 36, True)
    token = 1000 * network_links.costs(MODEL, [2, 3], links, asked)[lent].token_ms
    seen = (sum(many) - sum(few)) / 64
    # beside them go the words of the protocol: a few thousand bytes, whatever the model
    assert token < seen < token + 4000


def test_the_output_layer_alone_gets_one_token_of_a_prompt_and_no_mask(crossed: t.Callable[..., Crossed]) -> None:
    def reckoned(asked: network_links.Work) -> network_links.Cost:
        return network_links.costs(MODEL, [4, 1], [None, COUNTED], asked)[1]

    short, long = (crossed("RPC0/RPC1", "-p", str(tokens), "-n", "0", split="4/1") for tokens in (256, 2048))
    batch = 1000 * reckoned(network_links.work(2048, 256, 0, 0, True)).micro_batch_ms
    assert batch < (sum(long) - sum(short)) / 7 < batch + 4000
    few, many = (crossed("RPC0/RPC1", "-p", "0", "-n", str(tokens), split="4/1") for tokens in (8, 72))
    token = 1000 * reckoned(network_links.work(1, 256, 0, 36, True)).token_ms
    assert token < (sum(many) - sum(few)) / 64 < token + 4000
