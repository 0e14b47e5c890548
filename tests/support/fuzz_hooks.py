"""A hook of Schemathesis, which `test_fuzz` runs, for a rule that the OpenAPI document cannot express."""

from typing import Any
from zlib import crc32

import schemathesis


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, Any]
) -> None:
    """
    Make the Idempotency-Key depend on the body.

    The server rejects a key that it knows with another body, which the document cannot express. A key that
    Schemathesis generates twice with the same body is still repeated.
    """
    name = "Idempotency-Key"
    if case.headers and case.headers.get(name):
        case.headers[name] += f"-{crc32(repr(case.body).encode()):x}"
