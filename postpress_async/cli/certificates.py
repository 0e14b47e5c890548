"""``postpress-async cluster-certificates``: what a scheduler, its workers and we know each other by."""

import click

from postpress_async.cli import exits
from postpress_async.cli.running import cluster_extra


@click.command("cluster-certificates", short_help="Make a certificate and its key for a cluster.")
@click.argument("folder", metavar="DIR", type=click.Path())
def cluster_certificates(folder: str) -> int:
    """
    Make a certificate and its key in DIR, for a cluster of several machines.

    Whoever has the key may run code on the cluster, and read what it sends: copy it to the machines of the
    cluster, readable by its user alone, and nowhere else. It is valid for a year. Example:

    \b
      postpress-async cluster-certificates certificates
    """
    certificate, key = cluster_extra().write_certificates(folder)
    tls = f"--tls-ca-file {certificate} --tls-cert {certificate} --tls-key {key}"
    click.echo(f"written: {certificate}, {key}")
    click.echo("copy both to each machine of the cluster; then, on one of them and on each of them:")
    click.echo(f"  dask scheduler --protocol tls {tls}")
    click.echo(f"  POSTPRESS_API_KEY=... dask worker tls://SCHEDULER:8786 --nworkers -1 --nthreads 1 {tls}")
    click.echo("and here:")
    click.echo(f"  postpress-async rotate FLEET --cluster tls://SCHEDULER:8786 --certificates {folder}")
    return exits.ALL_PATCHED
