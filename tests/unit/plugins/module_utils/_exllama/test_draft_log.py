# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is read of a draft in TabbyAPI's log. The lines are those of its two pinned commits."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import draft_log

V2 = "INFO:     Loading draft model: /srv/models/d\nINFO:     Loading model: /srv/models/m\n"
V3 = "INFO:     Using draft model: /srv/models/d\nINFO:     Loading model: /srv/models/m\n"
NONE = "INFO:     Loading model: /srv/models/m\n"
ANSWERED = """\
INFO:     Metrics (ID: 1a): 192 tokens generated in 4.1 seconds (Queue: 0.0 s, Process: 0 cached tokens and 31 new
tokens at 310.0 T/s, Generate: 48.0 T/s, Context: 31 tokens, Draft: 110 / 300 tokens accepted (36.67%))
INFO:     Metrics (ID: 2b): 192 tokens generated in 3.9 seconds (Generate: 50.0 T/s, Draft: 120 / 280
tokens accepted (42.86%))
"""


def test_both_generations_say_that_they_take_a_draft():
    assert [draft_log.loaded(text) for text in (V2, V3, NONE)] == [True, True, False]


def test_a_server_without_its_draft_is_told_and_a_log_without_a_beginning_is_not():
    for text in (V2, V3, "", ANSWERED):
        draft_log.check_served(text, "/srv/models/d", "exllama-server.service")
    with pytest.raises(UserError, match="loaded its model without the draft /srv/models/d, which it is to serve with"):
        draft_log.check_served(NONE, "/srv/models/d", "exllama-server.service")


def test_drafted_tokens_count_where_every_answer_tells_them():
    assert draft_log.counted(ANSWERED, 2) == (580, 230)
    assert draft_log.counts(ANSWERED) and not draft_log.counts(V2)
    # a line that is still to come would make the share one of another number of tokens
    assert draft_log.counted(ANSWERED, 3) == (0, 0) == draft_log.counted(V2, 2)
