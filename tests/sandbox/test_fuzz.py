"""
The sandbox follows its OpenAPI document: valid requests succeed, and invalid requests get a documented error.

schemathesis generates valid and invalid requests from the document. It runs in a process of its own, so that
its imports and warnings do not affect other tests.
"""

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path

import pytest

from postpress_async.sandbox import Fault
from postpress_async.sandbox._catalogue import TYPES, UNLISTED
from postpress_async.sandbox._faults import Faults
from postpress_async.sandbox._responses import Envelope
from postpress_async.sandbox._server import Server
from tests.support import ROOT
from tests.support.openapi import document

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("POSTPRESS_TEST_FUZZ", "60"))
"""Number of random requests in each run. schemathesis adds some hundred requests that are not random."""


async def fuzz(
    server: Server, folder: Path, *options: str, envelope: Envelope = "page"
) -> tuple[int | None, str]:
    """
    Run schemathesis against the server. Return its exit code (0 if it found no fault) and its output.

    *folder* is for temporary files.
    """
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(document(envelope)), "utf-8")
    arguments = [
        *(str(schema), f"--url={server.url}", f"--header=X-API-KEY: {server.api_key}"),
        *("--seed=1", f"--max-examples={CASES}", "--phases=examples,coverage,fuzzing"),
        *("--no-color", "--output-truncate=false", *options),
    ]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.support.fuzz_hooks",
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env=environment,
    )
    try:
        output, _ = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    return program.returncode, output.decode()


# --- The document ---


def test_document_has_every_status_and_error_type() -> None:
    """These are the types of the API reference, and the sandbox's own types such as too_many_requests."""
    openapi = document()

    responses = openapi["paths"]["/accounts/{id}"]["patch"]["responses"]
    entries = {**TYPES, **UNLISTED}
    assert set(responses) == {"200", *(str(entry.status) for entry in entries.values())}
    for type_, entry in entries.items():
        assert type_ in responses[str(entry.status)]["description"]
    assert set(openapi["components"]["schemas"]["Error"]["properties"]["type"]["enum"]) == set(entries)


# --- The server ---


async def test_server_accepts_and_rejects_requests_as_the_document_says(tmp_path: Path) -> None:
    """There is no 500, and no status, type or header that is not in the document."""
    async with Server() as server:
        code, output = await fuzz(server, tmp_path)
        record = server.record

    assert code == 0, output
    assert {200, 400, 401, 405} <= set(record.by_status) <= {200, 400, 401, 404, 405}
    assert record.requests >= CASES
    assert record.unanswered == record.in_flight == 0


async def test_rate_limit_dead_proxies_and_quickstart_envelope_follow_the_document(tmp_path: Path) -> None:
    """The clock stands still, so all requests after the first 60 exceed the rate limit."""
    async with Server(
        rate=1.0, burst=60, clock=lambda: 0.0, dead_proxies=lambda _: True, envelope="quickstart"
    ) as server:
        excluded = "--exclude-checks=not_a_server_error"
        code, output = await fuzz(server, tmp_path, excluded, envelope="quickstart")
        record = server.record

    assert code == 0, output
    assert {401, 429, 502} <= set(record.by_status) <= {200, 400, 401, 404, 405, 429, 502}


class CyclingFaults(Faults):
    """Uses the given faults one after the other, over and over, for the requests of all accounts."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self._cycle = itertools.cycle(faults)

    def draw(self, account_id: str, nth: int, *, elapsed: float = 0.0, executing: int = 0) -> Fault:
        return next(self._cycle)


CONFORMANCE = "status_code_conformance,content_type_conformance,response_schema_conformance"


async def test_every_error_type_conforms_to_the_document(tmp_path: Path) -> None:
    """Authors of clients may generate code from the document."""
    faults = CyclingFaults(*(Fault(type=type_) for type_ in [*TYPES, *UNLISTED]))
    async with Server(faults=faults) as server:
        code, output = await fuzz(server, tmp_path, "--mode=positive", f"--checks={CONFORMANCE}")
        record = server.record

    assert code == 0, output
    assert set(record.by_type) >= {*TYPES, "errors/too_many_requests"}


async def test_schemathesis_finds_responses_that_violate_the_document(tmp_path: Path) -> None:
    """Without this check, the other tests could pass although schemathesis finds nothing."""
    faults = CyclingFaults(
        Fault(type="errors/unexpected_error"),  # documented, but each 500 is reported as a server error
        Fault(type="errors/x", status=400),
        Fault(status=418, body=b"{}"),
    )
    async with Server(faults=faults) as server:
        options = ("--max-examples=20", "--phases=fuzzing", "--mode=positive", "--continue-on-failure")
        code, output = await fuzz(server, tmp_path, *options)

    assert code == 1
    for finding in ("Server error", "Response violates schema", "Undocumented status code"):
        assert finding in output
