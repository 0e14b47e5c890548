"""``postpress-async cluster-certificates``: create a cluster's TLS certificate."""

import click

from postpress_async._cli import exit_codes
from postpress_async._cli.command import Command
from postpress_async._cli.running import import_cluster


@click.command("cluster-certificates", cls=Command, short_help="Create the TLS certificate of a cluster.")
@click.argument("folder", metavar="DIR", type=click.Path())
def cluster_certificates(folder: str) -> int:
    """
    Create a TLS certificate and its private key in DIR, for a cluster of several machines.

    Anyone with the key can run code on the cluster and read its traffic. Copy it only to the machines of the
    cluster, and let only the cluster's user read it. The certificate is valid for a year. Example:

    \b
      postpress-async cluster-certificates certificates
    """
    certificate, key = import_cluster().write_certificates(folder)
    tls = f"--tls-ca-file {certificate} --tls-cert {certificate} --tls-key {key}"
    click.echo(f"written: {certificate}, {key}")
    click.echo("Copy both files to each machine of the cluster. Start the scheduler on one of the machines:")
    click.echo(f"  dask scheduler --protocol tls {tls}")
    click.echo("Start the workers on each machine:")
    click.echo(f"  POSTPRESS_API_KEY=... dask worker tls://SCHEDULER:8786 --nworkers -1 --nthreads 1 {tls}")
    click.echo("Run the rotation on this machine:")
    click.echo(f"  postpress-async rotate FLEET --cluster tls://SCHEDULER:8786 --certificates {folder}")
    return exit_codes.ALL_PATCHED
