"""
The sandbox follows its OpenAPI document: valid requests succeed, others are refused.

schemathesis makes the requests, valid ones and broken ones, from the document.
It runs as a program of its own: what it loads, and warns of, is no part of this suite.
"""

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path

import pytest

from postpress_async.sandbox import Fault
from postpress_async.sandbox._answers import Envelope
from postpress_async.sandbox._catalogue import TYPES, UNLISTED
from postpress_async.sandbox._faults import Faults
from postpress_async.sandbox._server import Server
from tests.support import ROOT
from tests.support.openapi import document

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("POSTPRESS_TEST_FUZZ", "60"))
"""Requests of each run that are drawn; some hundred that are not come on top."""


async def fuzz(
    server: Server, folder: Path, *options: str, envelope: Envelope = "page"
) -> tuple[int | None, str]:
    """Exit code and text of a run against *server*; 0 where nothing was found. *folder* is its scratch."""
    schema = folder / "openapi.json"
    schema.write_text(json.dumps(document(envelope)), "utf-8")
    arguments = [str(schema), f"--url={server.url}"]
    arguments += [
        "--seed=1",
        f"--max-examples={CASES}",
        f"--header=X-API-KEY: {server.api_key}",
        "--no-color",
    ]
    arguments += ["--phases=examples,coverage,fuzzing", "--output-truncate=false", *options]
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


# --- The document ---------------------------------------------------------------------------------


def test_the_document_has_every_status_and_type_of_the_page() -> None:
    """And what every API answers besides; nothing is left to be found out."""
    found = document()

    answers = found["paths"]["/accounts/{id}"]["patch"]["responses"]
    listed = {**TYPES, **UNLISTED}
    assert set(answers) == {"200", *(str(kind.status) for kind in listed.values())}
    for type_, kind in listed.items():
        assert type_ in answers[str(kind.status)]["description"]
    assert set(found["components"]["schemas"]["Error"]["properties"]["type"]["enum"]) == set(listed)


# --- What the server takes ------------------------------------------------------------------------


async def test_the_server_takes_what_its_document_allows_and_refuses_the_rest(tmp_path: Path) -> None:
    """No 500 that was not scripted, no status, type or header that is not in the document."""
    async with Server() as server:
        code, output = await fuzz(server, tmp_path)
        record = server.record

    assert code == 0, output
    assert {200, 400, 401, 405} <= set(record.by_status) <= {200, 400, 401, 404, 405}
    assert record.requests >= CASES
    assert record.unanswered == record.in_flight == 0


async def test_a_server_with_limits_keeps_to_its_document(tmp_path: Path) -> None:
    """A rate that is soon used up, proxies that are dead, the other envelope: more ways to refuse."""
    async with Server(
        rate=1.0, burst=60, clock=lambda: 0.0, dead_proxies=lambda _: True, envelope="quickstart"
    ) as server:
        excluded = "--exclude-checks=not_a_server_error"
        code, output = await fuzz(server, tmp_path, excluded, envelope="quickstart")
        record = server.record

    assert code == 0, output
    assert {401, 429, 502} <= set(record.by_status) <= {200, 400, 401, 404, 405, 429, 502}


class InTurn(Faults):
    """Deals these out one after the other, to any caller."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self._turn = itertools.cycle(faults)

    def draw(self, account_id: str, nth: int, *, elapsed: float = 0.0, executing: int = 0) -> Fault:
        return next(self._turn)


CONFORMANCE = "status_code_conformance,content_type_conformance,response_schema_conformance"


async def test_every_error_that_can_be_scripted_conforms_to_the_document(tmp_path: Path) -> None:
    """A client's author may generate types from it."""
    async with Server(faults=InTurn(*(Fault(type=type_) for type_ in [*TYPES, *UNLISTED]))) as server:
        code, output = await fuzz(server, tmp_path, "--mode=positive", f"--checks={CONFORMANCE}")
        record = server.record

    assert code == 0, output
    assert set(record.by_type) >= {*TYPES, "errors/too_many_requests"}


async def test_a_server_that_breaks_its_document_is_found_out(tmp_path: Path) -> None:
    """Else the runs above would prove nothing."""
    faults = InTurn(
        Fault(type="errors/unexpected_error"),  # which is listed, and a 500 all the same
        Fault(type="errors/x", status=400),
        Fault(status=418, body=b"{}"),
    )
    async with Server(faults=faults) as server:
        options = ("--max-examples=20", "--phases=fuzzing", "--mode=positive", "--continue-on-failure")
        code, output = await fuzz(server, tmp_path, *options)

    assert code == 1
    for found in ("Server error", "Response violates schema", "Undocumented status code"):
        assert found in output
