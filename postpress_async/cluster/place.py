"""The address of a cluster, and the certificates by which its processes recognize each other."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Final, Self

from attrs import frozen
from distributed.security import Security

from postpress_async.errors import ConfigurationError

CERTIFICATE: Final = "cluster.pem"
KEY: Final = "cluster-key.pem"

_FORMS: Final = "use local:N for N workers on this machine, or tls://HOST:PORT for a Dask scheduler"
_ADDRESS: Final = re.compile(r"(tls|tcp)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_MOST: Final = 256


@frozen
class Place:
    """
    A cluster's place.

    Attributes:
        workers: Of a cluster of our own on this machine; 0 where it is somebody else's.
        address: The scheduler's; None for our own.
        host: Its host, without brackets.
    """

    workers: int
    address: str | None = None
    host: str = "127.0.0.1"

    @classmethod
    def of(cls, text: str) -> Self:
        """
        The place that *text* names.

        Raises:
            ConfigurationError: It names none; or one to which keys and proxies would travel readable.
        """
        kind, _, rest = text.partition(":")
        if kind == "local":
            if not re.fullmatch("[0-9]{1,9}", rest) or not 1 <= int(rest) <= _MOST:
                raise ConfigurationError(f"N of local:N must be from 1 to {_MOST}, got {rest[:20]!r}")
            return cls(int(rest))
        parts = _ADDRESS.fullmatch(text)
        if parts is None or not 1 <= int(parts[3]) <= 65535:
            raise ConfigurationError(f"{text!r} is not the address of a cluster: {_FORMS}")
        place = cls(0, text, parts[2].strip("[]"))
        if parts[1] == "tcp" and not place.is_here:
            raise ConfigurationError(
                f"{text} does not use TLS: anyone who can reach it could run code there and read the "
                "proxies. Start the scheduler with certificates, and use tls://"
            )
        return place

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, by an address that no other machine reaches."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def security(self, certificates: str | os.PathLike[str] | None) -> Security | None:
        """
        What connections to it are made with; None for plain ones, on this machine.

        Args:
            certificates: A folder that `write_certificates` has filled. Where it is None, a cluster of our
                own gets certificates that live as long as it, and for another one Dask's configuration says.

        Raises:
            ConfigurationError: There are no certificates, or they cannot be read.
        """
        if certificates is not None:
            return read_certificates(certificates)
        if self.address is None:
            return Security.temporary()
        if not self.address.startswith("tls:"):
            return None
        found = Security(require_encryption=True)
        read: Any = found  # its fields are made as it is made, from Dask's configuration
        if not (read.tls_ca_file and read.tls_client_cert):
            raise ConfigurationError(
                f"{self.address} requires certificates: create them with postpress-async "
                "cluster-certificates DIR, start the scheduler and its workers with them, and pass the same "
                "directory here"
            )
        return found


def read_certificates(folder: str | os.PathLike[str]) -> Security:
    """
    The security that *folder* holds.

    Raises:
        ConfigurationError: They are not there, or cannot be used.
    """
    certificate, key = Path(folder, CERTIFICATE), Path(folder, KEY)
    roles = ("client", "scheduler", "worker")
    files = {f"tls_{role}_cert": str(certificate) for role in roles}
    files |= {f"tls_{role}_key": str(key) for role in roles}
    made = Security(require_encryption=True, tls_ca_file=str(certificate), **files)
    try:
        made.get_connection_args("client")
    except OSError as error:  # ssl.SSLError is one
        fact = error.strerror or "the key does not belong to the certificate"
        raise ConfigurationError(
            f"{CERTIFICATE} and {KEY} in {folder} cannot be used ({fact}): create them with "
            "postpress-async cluster-certificates"
        ) from None
    return made


def write_certificates(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """
    Fill *folder*, made if need be, with a certificate and its key, for a scheduler, its workers and us.

    Anyone with the key can run code on the cluster, so only its owner can read it. Valid for a year.

    Returns:
        The two files.

    Raises:
        ConfigurationError: They are there already, or cannot be written.
    """
    made = Security.temporary()
    place = Path(folder)
    files = {place / CERTIFICATE: made.tls_client_cert, place / KEY: made.tls_client_key}
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file, text in files.items():
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "w", encoding="ascii") as out:
                out.write(text)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{error.filename} already exists: delete it, or use another directory"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be written ({error.strerror})") from None
    certificate, key = files
    return certificate, key
