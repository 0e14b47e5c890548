"""Words in, exit codes out: the command ``postpress-async``."""

import os
import sys

import click

from postpress_async._version import __version__
from postpress_async.cli import exits
from postpress_async.cli.arguments import refuse_secrets
from postpress_async.cli.catalogue import errors
from postpress_async.cli.rotate import rotate
from postpress_async.cli.serve import sandbox
from postpress_async.cli.update import update
from postpress_async.errors import ConfigurationError, RotationError


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=exits.HELP)
@click.version_option(__version__)
def cli() -> None:
    """
    Give PostPress accounts new proxies: one, or a whole fleet.

    The API key is read from POSTPRESS_API_KEY, or from --api-key-file. Try it without one:

      postpress-async rotate --sandbox
    """


for command in (rotate, update, sandbox, errors):
    cli.add_command(command)


def run() -> None:
    """The command line, with every foreseen refusal told in one sentence on standard error."""
    try:
        refuse_secrets(sys.argv[1:])
        sys.exit(cli.main(standalone_mode=False) or exits.ALL_PATCHED)
    except click.UsageError as error:
        error.show()
        sys.exit(exits.BAD_INPUT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (ConfigurationError, RotationError, ValueError) as error:
        click.echo(f"postpress-async: {error}", err=True)
        sys.exit(exits.BAD_INPUT)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nothing is left to flush at exit
        sys.exit(exits.SOME_LEFT)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(exits.INTERRUPTED)
