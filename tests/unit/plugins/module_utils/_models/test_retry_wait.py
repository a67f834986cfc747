# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Headers of services that limit requests, as their documentation shows them."""

from __future__ import annotations

import email.utils

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import retry_wait
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_790_000_000.0  # 2026-09-21T14:13:20Z


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"Content-Length": "0"}, None),
        ({"Retry-After": "120"}, 120), ({"retry-after": " 7 "}, 7), ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": email.utils.formatdate(NOW + 90, usegmt=True)}, 90),
        ({"Retry-After": email.utils.formatdate(NOW - 90, usegmt=True)}, 0),
        ({"Retry-After": "Monday, 21-Sep-26 14:15:20 GMT"}, 120),
        ({"Retry-After": "soon"}, None), ({"Retry-After": "-5"}, None), ({"Retry-After": "9" * 5000}, None),
        ({"Retry-After": "inf"}, None), ({"Retry-After": "nan"}, None), ({"Retry-After": "\u0661"}, None),
        ({"Retry-After-Ms": "2500"}, 2.5), ({"x-ms-retry-after-ms": "300"}, 0.3), ({"X-Retry-After": "9"}, 9),
        # draft-ietf-httpapi-ratelimit-headers, 08 and later
        ({"RateLimit": '"api";r=0;t=180'}, 180), ({"ratelimit": "api; r=0; t=42"}, 42),
        ({"RateLimit": '"burst";r=0;t=10, "day";r=0;t=3600'}, 3600),
        ({"RateLimit": '"burst";r=0;t=10, "day";r=400;t=3600'}, 10),
        ({"RateLimit": '"a,b;t=9";r=0;t=33'}, 33), ({"RateLimit": '"api";t=12'}, 12),
        ({"RateLimit": '"x";r=5;t=70, "y";r=8;t=20'}, 20),
        # draft 07, and the headers of 00 to 06
        ({"RateLimit": "limit=100, remaining=0, reset=50"}, 50),
        ({"RateLimit-Limit": "100", "RateLimit-Remaining": "0", "RateLimit-Reset": "44"}, 44),
        # GitHub: seconds since 1970
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW) + 75)}, 75),
        ({"X-Rate-Limit-Reset": str(int(NOW) - 75)}, 0), ({"X-RateLimit-Reset": str(int(NOW + 60) * 1000)}, 60),
        ({"X-RateLimit-Reset": "2026-09-21T14:14:20Z"}, 60), ({"X-RateLimit-Reset-After": "1.25"}, 1.25),
        ({"X-RateLimit-Reset": "10, 20"}, 20),
        # several limits at once, as OpenAI and Anthropic name them
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-reset-tokens": "250ms"}, 360),
        ({
            "x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "6m0s",
            "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m3.5s",
        }, 3723.5),
        ({"anthropic-ratelimit-requests-reset": "2026-09-21T14:13:50+00:00"}, 30),
        # the window alone
        ({"RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 300), ({"RateLimit-Policy": "100;w=60"}, 60),
        # who comes first
        ({"Retry-After": "5", "RateLimit": '"api";r=0;t=180'}, 5),
        ({"RateLimit": '"api";r=0;t=180', "RateLimit-Policy": '"api";q=500;w=300'}, 180),
        ({"Retry-After": "later", "RateLimit": '"api";r=0;t=8'}, 8),
        # the server's clock, where it shows it
        ({"Date": email.utils.formatdate(NOW + 3600, usegmt=True), "X-RateLimit-Reset": str(int(NOW) + 3630)}, 30),
    ],
)  # fmt: skip
def test_the_wait_is_the_one_that_a_header_names(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_wait.asked_seconds(headers, NOW) == (None if seconds is None else pytest.approx(seconds))


NAMES = st.sampled_from([
    "Retry-After", "RateLimit", "RateLimit-Reset", "X-RateLimit-Reset", "RateLimit-Policy", "Date", "Retry-After-Ms",
])  # fmt: skip


@given(st.dictionaries(NAMES, st.one_of(st.text(max_size=60), st.from_regex(r"[a-z\";=0-9, :]{0,60}"))))
def test_whatever_a_server_sends_is_a_number_of_seconds_or_nothing(headers: dict[str, str]) -> None:
    seconds = retry_wait.asked_seconds(headers, NOW)
    assert seconds is None or 0 <= seconds < float("inf")
