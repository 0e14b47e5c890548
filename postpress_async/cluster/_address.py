"""The address of a cluster, and the TLS certificates that its processes share."""

import os
import re
from pathlib import Path
from typing import Any, Final, Self, cast

from attrs import frozen
from distributed.security import Security

from postpress_async._settings import is_loopback
from postpress_async.errors import ConfigurationError

CERTIFICATE: Final = "cluster.pem"
KEY: Final = "cluster-key.pem"

_FORMS: Final = "use local:N for N workers on this machine, or tls://HOST:PORT for a Dask scheduler"
_ADDRESS: Final = re.compile(r"(tls|tcp)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_MAX_LOCAL_WORKERS: Final = 256


@frozen
class ClusterAddress:
    """The address of a cluster."""

    workers: int  # to start on this machine; 0 if the cluster is already running
    scheduler: str | None = None  # address of the running scheduler; None if this process starts one
    host: str = "127.0.0.1"  # of the scheduler, without brackets

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Parse ``local:N``, ``tls://HOST:PORT``, or ``tcp://HOST:PORT`` of this machine.

        Raises `ConfigurationError` if *text* has another form, or connections to another machine would not
        be encrypted.
        """
        scheme, _, rest = text.partition(":")
        if scheme == "local":
            if not re.fullmatch("[0-9]{1,9}", rest) or not 1 <= int(rest) <= _MAX_LOCAL_WORKERS:
                raise ConfigurationError(
                    f"N of local:N must be from 1 to {_MAX_LOCAL_WORKERS}, got {rest[:20]!r}"
                )
            return cls(int(rest))
        match = _ADDRESS.fullmatch(text)
        if match is None or not 1 <= int(match["port"]) <= 65535:
            raise ConfigurationError(f"{text!r} is not the address of a cluster: {_FORMS}")
        address = cls(0, text, match["host"].strip("[]"))
        if scheme == "tcp" and not address.is_local:
            raise ConfigurationError(
                f"{text} does not use TLS: anyone who can reach it could run code there and read the "
                "proxies. Start the scheduler with certificates, and use tls://"
            )
        return address

    @property
    def is_local(self) -> bool:
        """Whether no other machine can reach the scheduler."""
        return is_loopback(self.host)

    def security(self, certificates: str | os.PathLike[str] | None) -> Security | None:
        """
        Return the TLS settings of connections; None for unencrypted connections on this machine.

        *certificates* is a directory that `write_certificates` filled. If it is None, a cluster that this
        process starts gets temporary certificates, and Dask's configuration names the files for a running
        one. Raises `ConfigurationError` if there are no certificates, or they cannot be read.
        """
        if certificates is not None:
            return read_certificates(certificates)
        if self.scheduler is None:
            return Security.temporary()
        if not self.scheduler.startswith("tls:"):
            return None
        security: Any = Security(require_encryption=True)  # reads Dask's configuration
        if not (security.tls_ca_file and security.tls_client_cert):
            raise ConfigurationError(
                f"{self.scheduler} requires certificates: create them with postpress-async "
                "cluster-certificates DIR, start the scheduler and its workers with them, and pass the same "
                "directory here"
            )
        return cast(Security, security)


def read_certificates(folder: str | os.PathLike[str]) -> Security:
    """
    Read the certificate and key that `write_certificates` created in *folder*.

    Raises:
        ConfigurationError: The files do not exist, or cannot be used.
    """
    certificate, key = Path(folder, CERTIFICATE), Path(folder, KEY)
    roles = ("client", "scheduler", "worker")
    files = {f"tls_{role}_cert": str(certificate) for role in roles}
    files |= {f"tls_{role}_key": str(key) for role in roles}
    security = Security(require_encryption=True, tls_ca_file=str(certificate), **files)
    try:
        security.get_connection_args("client")
    except OSError as error:  # includes ssl.SSLError
        reason = error.strerror or "the key does not belong to the certificate"
        raise ConfigurationError(
            f"{CERTIFICATE} and {KEY} in {folder} cannot be used ({reason}): create them with "
            "postpress-async cluster-certificates"
        ) from None
    return security


def write_certificates(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """
    Create a certificate and its key in *folder*, for a scheduler, its workers and its clients.

    The certificate is valid for a year. Anyone with the key can run code on the cluster, so only the owner of
    the files may read them.

    Returns:
        The paths of the certificate and the key.

    Raises:
        ConfigurationError: The files exist already, or cannot be written.
    """
    security = Security.temporary()
    directory = Path(folder)
    files = {
        directory / CERTIFICATE: security.tls_client_cert,
        directory / KEY: security.tls_client_key,
    }
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, text in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(text)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{error.filename} already exists: delete it, or use another directory"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be written ({error.strerror})") from None
    certificate, key = files
    return certificate, key
