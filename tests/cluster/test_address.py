"""The address of a cluster, its certificates, and the arguments that it rejects before it starts."""

import asyncio
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from postpress_async import RetryPolicy, cluster
from postpress_async.cluster import Cluster, read_certificates, write_certificates
from postpress_async.cluster._address import ClusterAddress
from postpress_async.errors import ClusterError, ConfigurationError
from tests.support import KEY


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["dask", "distributed"])
def test_import_without_dask_names_the_extra_to_install(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; import postpress_async.cluster"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "pip install 'postpress-async[distributed]'" in done.stderr.splitlines()[-1]


def test_address_is_a_number_of_local_workers_or_a_scheduler() -> None:
    assert ClusterAddress.parse("local:3") == ClusterAddress(3)
    assert ClusterAddress.parse("tls://scheduler.example.com:8786").host == "scheduler.example.com"
    assert ClusterAddress.parse("tls://[2001:db8::1]:8786").host == "2001:db8::1"
    assert ClusterAddress.parse("tcp://127.0.0.1:8786").is_local
    assert not ClusterAddress.parse("tls://10.0.0.1:8786").is_local


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("local:0", "from 1 to"),
        ("local:", "from 1 to"),
        ("local:" + "9" * 5_000, "from 1 to"),  # more digits than int() accepts
        ("scheduler:8786", "not the address of a cluster"),
        ("tls://scheduler", "not the address of a cluster"),
        ("tls://scheduler:0", "not the address of a cluster"),
        ("tls://scheduler:8786/x", "not the address of a cluster"),
        ("ucx://scheduler:8786", "not the address of a cluster"),
        ("tcp://10.0.0.1:8786", "does not use TLS"),
        ("tcp://scheduler:8786", "does not use TLS"),
    ],
)
def test_invalid_or_unencrypted_remote_address_is_rejected(text: str, message: str) -> None:
    """A Dask cluster runs any code that it receives, and shards contain the passwords of proxies."""
    with pytest.raises(ConfigurationError, match=message):
        ClusterAddress.parse(text)


def test_remote_scheduler_requires_certificates(tmp_path: Path) -> None:
    address = ClusterAddress.parse("tls://10.0.0.1:8786")
    with pytest.raises(ConfigurationError, match="cluster-certificates"):
        address.security(None)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        address.security(tmp_path)

    write_certificates(tmp_path)

    assert address.security(tmp_path) is not None


def test_certificates_are_private_and_never_overwritten(tmp_path: Path) -> None:
    """New certificates would lock the command out of a cluster that runs with the old ones."""
    folder = tmp_path / "certificates"
    files = write_certificates(folder)
    contents = [file.read_bytes() for file in files]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    read_certificates(folder)

    with pytest.raises(ConfigurationError, match="already exists"):
        write_certificates(folder)
    assert [file.read_bytes() for file in files] == contents


@pytest.mark.parametrize(
    "response",
    [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", bytes(range(256))],
    ids=["silent server", "web server", "random bytes"],
)
async def test_server_that_is_not_a_scheduler_is_reported(
    response: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For such a response, Dask may raise any error, even MemoryError, or wait without end."""
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT", 0.2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ClusterError, match="no scheduler responds"):
            await Cluster(f"tcp://127.0.0.1:{port}").__aenter__()


def test_retry_policy_that_cannot_be_pickled_is_rejected_by_the_constructor() -> None:
    """Otherwise the first shard would fail, and the message would blame the worker."""
    lock = threading.Lock()
    Cluster("local:1", api_key=KEY, retry=RetryPolicy(wait=lambda state: 0.1 * state.attempt_number))

    with pytest.raises(ConfigurationError, match="retry policy cannot be sent"):
        Cluster("local:1", api_key=KEY, retry=RetryPolicy(stop=lambda _: lock.locked()))


def test_api_key_is_rejected_for_a_running_scheduler() -> None:
    """Its workers read the key from their own environment, so the argument would have no effect."""
    with pytest.raises(ConfigurationError, match="leave api_key out"):
        Cluster("tcp://127.0.0.1:8786", api_key=KEY)


def test_cluster_must_be_started_before_it_rotates() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        Cluster("local:1", api_key=KEY).rotate({})


def test_transport_object_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="its workers cannot share an object"):
        Cluster("local:1", api_key=KEY, transport=object())  # type: ignore[arg-type]
