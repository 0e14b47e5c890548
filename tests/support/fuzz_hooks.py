"""Loaded by schemathesis itself, which `test_fuzz` runs: what a schema cannot say about a request."""

from typing import Any
from zlib import crc32

import schemathesis


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, Any]
) -> None:
    """
    An Idempotency-Key stands for one body: with another it is refused, as the server's own tests show.

    So a key that comes up again brings its body along, and is a replay.
    """
    name = "Idempotency-Key"
    if case.headers and case.headers.get(name):
        case.headers[name] += f"-{crc32(repr(case.body).encode()):x}"
