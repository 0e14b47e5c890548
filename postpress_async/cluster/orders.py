"""The settings of a rotation that a worker gets before its first row."""

from typing import Literal

from attrs import frozen

from postpress_async.pace import Pace
from postpress_async.retry import RetryPolicy


@frozen
class Orders:
    """
    No secret is among them.

    Attributes:
        run: The name of the rotation, of which the idempotency keys are made.
        base_url: Where the requests go.
        retry: How each call is retried.
        pace: Of each worker; its rate is leased.
        pooled: Whether proxies come from the coordinator's pool.
        watched: Whether somebody wants to know of each retry.
        transport: As `PostPressSession` has it.
        idempotency: As `PostPressSession` has it.
        trust_env: As `PostPressSession` has it.
    """

    run: str
    base_url: str
    retry: RetryPolicy
    pace: Pace
    pooled: bool
    watched: bool
    transport: Literal["session", "lean"] = "session"
    idempotency: bool = True
    trust_env: bool = False
