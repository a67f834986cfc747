# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_proof

LLAMA, EXLLAMA = served_proof.ENGINES["llama_cpp"], served_proof.ENGINES["exllama"]


def paths(arguments=(), environment=()):
    return {endpoint.path.partition("?")[0] for endpoint in served_proof.shut(arguments, environment)}


def test_everything_is_shut_that_nobody_opened():
    everything = {"/tools", "/cors-proxy", "/slots/0", "/props", "/models/load"}
    assert paths() == everything and paths(["--chat-template", "props", "-x"], ["X"]) == everything


@pytest.mark.parametrize(
    ("arguments", "environment", "opened"),
    [
        (["--props"], [], {"/props"}),
        (["--slot-save-path", "/srv/slots"], [], {"/slots/0"}),
        (["--slot-save-path=/srv/slots"], [], {"/slots/0"}),
        (["--agent"], [], {"/tools", "/cors-proxy"}),
        ([], ["LLAMA_ARG_TOOLS", "LLAMA_ARG_MODELS_DIR"], {"/tools", "/models/load"}),
    ],
)
def test_what_was_opened_on_purpose_may_be_open(arguments, environment, opened):
    assert paths() - paths(arguments, environment) == opened


@pytest.mark.parametrize(
    ("build", "arguments", "environment", "page"),
    [
        ({"web_ui_node": "24.19.0"}, ["--metrics"], ["GGML_X"], True),
        ({"web_ui_node": "24.19.0"}, ["--no-ui"], [], False),
        ({"web_ui_node": "24.19.0"}, ["--path=/srv/page"], [], False),
        ({"web_ui_node": "24.19.0"}, [], ["LLAMA_ARG_UI"], False),
        ({"web_ui_node": ""}, [], [], False),
        ({}, [], [], False),
    ],
)
def test_the_page_of_a_build_must_be_there_unless_something_took_it_away(build, arguments, environment, page):
    assert served_proof.has_page(build, arguments, environment) is page


@pytest.mark.parametrize("status", [403, 404, 501])
def test_shut_is_shut(status):
    for endpoint in served_proof.SHUT_ENDPOINTS:
        served_proof.check_shut(LLAMA, endpoint, status)


@pytest.mark.parametrize("status", [200, 400, 401, 500, None])
def test_anything_else_is_open(status):
    endpoint = served_proof.SHUT_ENDPOINTS[0]
    with pytest.raises(UserError, match="to GET /tools, which must be shut .* or set --tools in llama_server_"):
        served_proof.check_shut(LLAMA, endpoint, status)


def test_a_completion_counts_tokens():
    served_proof.check_completion(LLAMA, 200, {"timings": {"predicted_n": 8}}, "")
    served_proof.check_completion(EXLLAMA, 200, {"usage": {"completion_tokens": 8}}, "/k")


@pytest.mark.parametrize(
    ("status", "answer", "sentence"),
    [
        (200, {"timings": "fast", "usage": [3]}, "answers /health but no completion"),
        (401, {}, "llama-server.service does not accept the key in /k: it was started with another key; restart"),
        (None, {}, "answers /health but no completion (HTTP status None)"),
        (500, {}, "no completion (HTTP status 500): a device that it uses may have died"),
        (200, {}, "no completion"), (200, {"timings": {"predicted_n": 0}}, "no completion"),
        (200, {"usage": {"completion_tokens": None}}, "no completion"),
    ],
)  # fmt: skip
def test_no_completion_is_one_sentence(status, answer, sentence):
    with pytest.raises(UserError) as caught:
        served_proof.check_completion(LLAMA, status, answer, "/k")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("status", [200, 404, None])
def test_a_server_with_a_key_refuses_strangers(status):
    served_proof.check_secured(EXLLAMA, 401)
    with pytest.raises(UserError, match="exllama-server.service answers without exllamav2_api_key"):
        served_proof.check_secured(EXLLAMA, status)
