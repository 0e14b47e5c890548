"""The proxy servers Tinyproxy, Squid, Dante and microsocks, run on loopback."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from trustme import LeafCert

USER, PASSWORD = "customer", "hunter2"

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])  # where Debian installs the servers


def requires(binary: str) -> pytest.MarkDecorator:
    """Skip a test if *binary* is missing; in CI, where it must be installed, run and fail the test."""
    skip = shutil.which(binary, path=_PATH) is None and os.environ.get("CI") != "true"
    return pytest.mark.skipif(skip, reason=f"{binary} is not installed; see .ci/run")


@contextmanager
def tinyproxy(folder: Path, accepted: Mapping[str, str]) -> Iterator[int]:
    """
    Run an HTTP proxy, which connects from 127.0.0.2, and yield its port.

    *accepted* has the password of each user; if it is empty, no credentials are required.
    """
    users = "".join(f"BasicAuth {user} {password}\n" for user, password in accepted.items())
    settings = "Listen 127.0.0.1\nBind 127.0.0.2\nAllow 127.0.0.1\nMaxClients 500\nLogLevel Error\n"
    port = _free_port()
    path = folder / "tinyproxy.conf"
    path.write_text(f"Port {port}\n{settings}{users}")
    with _started(["tinyproxy", "-d", "-c", path], port):
        yield port


@contextmanager
def squid(certificate: LeafCert) -> Iterator[tuple[int, int]]:
    """Run an HTTP proxy for `USER`, which connects from 127.0.0.3, and yield its ports for http and https."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # Squid reads its files as another user than root
        yield from _squid(folder, certificate)


def _squid(folder: Path, certificate: LeafCert) -> Iterator[tuple[int, int]]:
    pem = folder / "certificate.pem"
    pem.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    command = ["openssl", "passwd", "-6", PASSWORD]
    digest = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (folder / "passwords").write_text(f"{USER}:{digest}")
    ports = _free_port(), _free_port()
    path = folder / "squid.conf"
    path.write_text(f"""
http_port 127.0.0.1:{ports[0]}
https_port 127.0.0.1:{ports[1]} tls-cert={pem}
tcp_outgoing_address 127.0.0.3
auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/passwords
acl users proxy_auth REQUIRED
http_access allow users
http_access deny all
cache deny all
access_log none
cache_log stdio:/dev/null
pid_filename none
coredump_dir none
shutdown_lifetime 0 seconds
""")
    with _started(["squid", "-N", "-f", path], *ports):
        yield ports


@contextmanager
def dante(folder: Path, method: str) -> Iterator[int]:
    """
    Run a SOCKS proxy, and yield its port.

    *method* is ``none``, or ``username`` to require the credentials of a user of this machine.
    """
    port = _free_port()
    path = folder / f"danted-{method}.conf"
    path.write_text(f"""
errorlog: stderr
internal: 127.0.0.1 port = {port}
external: lo
clientmethod: none
socksmethod: {method}
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
""")
    with _started(["danted", "-f", path], port):
        yield port


@contextmanager
def microsocks() -> Iterator[int]:
    """Run a SOCKS proxy for `USER`, which connects from 127.0.0.5, and yield its port."""
    port = _free_port()
    options = f"-i 127.0.0.1 -p {port} -u {USER} -P {PASSWORD} -b 127.0.0.5".split()
    with _started(["microsocks", *options], port):
        yield port


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@contextmanager
def _started(command: Sequence[str | Path], *ports: int) -> Iterator[None]:
    binary = shutil.which(command[0], path=_PATH)
    assert binary is not None, f"{command[0]} is not installed"
    null = subprocess.DEVNULL
    with subprocess.Popen([binary, *command[1:]], stdin=null, stdout=null, stderr=null) as process:
        try:
            for port in ports:
                _wait_until_open(port, process)
            yield
        finally:
            process.terminate()


def _wait_until_open(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):  # 30 s
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert process.poll() is None, f"{process.args!r} ended with exit code {process.returncode}"
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{process.args!r} does not listen")
