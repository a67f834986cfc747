# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""huggingface_hub's HTTP client, with bounds on what an answer may cost. Needs huggingface_hub (host Python).

The library reads an answer whole, however long it is and however long it takes, and it takes any compression.
"""

from __future__ import annotations

import time
import typing as t

from .._base.errors import UserError

#: The list of a repository with thousands of files has about 2 MB; as Python objects JSON is up to 32 times as large.
LONGEST_ANSWER_BYTES = 16 << 20
ANSWER_SECONDS = 20.0  # from the first byte to the last


def bound(endpoint: str) -> None:
    """Make huggingface_hub's client refuse answers that are too long, too slow or compressed, as a UserError.

    ``endpoint``: the hub's address, for the sentence.
    """
    from huggingface_hub.utils import get_session

    client = get_session()
    client.headers["Accept-Encoding"] = "identity"
    client.event_hooks = {
        **client.event_hooks,
        "response": [lambda response: _bound_answer(response, endpoint)],
    }


def _bound_answer(response: t.Any, endpoint: str) -> None:
    """Put a limit around the body of a response that was not read yet. Raises UserError for a compressed one."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise UserError(
            f"{endpoint} answers with the content coding {coding[:40]!a}, though none was asked for: check the hub's "
            "address, and the proxy in between."
        )
    kind = next(kind for kind in type(response.stream).__mro__ if kind.__name__ == "SyncByteStream")
    response.stream = _bounded_stream(kind)(response.stream, endpoint)


def _bounded_stream(kind: type) -> t.Any:
    """Return the class of a body that ends with a UserError where it has too many bytes or takes too long.

    ``kind``: the client's class of bodies, which it insists on.
    """

    class Bounded(kind):  # type: ignore[misc]
        def __init__(self, stream: t.Any, endpoint: str) -> None:
            self.stream, self.endpoint = stream, endpoint

        def __iter__(self) -> t.Iterator[bytes]:
            deadline, n_bytes = time.monotonic() + ANSWER_SECONDS, 0
            for chunk in self.stream:
                n_bytes += len(chunk)
                if n_bytes > LONGEST_ANSWER_BYTES:
                    raise UserError(
                        f"{self.endpoint} answers with more than {LONGEST_ANSWER_BYTES >> 20} MiB, which is no list of "
                        "files: check the hub's address."
                    )
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self.endpoint} did not finish its answer within {ANSWER_SECONDS:.0f} s: run the play again "
                        "later, or use a mirror."
                    )
                yield chunk

        def close(self) -> None:
            self.stream.close()

    return Bounded
