"""Words in, exit codes out: the command ``postpress-async``."""

import errno
import os
import sys
from typing import Final

import click

from postpress_async._cli import exit_codes
from postpress_async._cli.arguments import refuse_secrets
from postpress_async._cli.certificates import cluster_certificates
from postpress_async._cli.completion import completion
from postpress_async._cli.errors import errors
from postpress_async._cli.export import export
from postpress_async._cli.output import TOO_MANY_FILES, is_file_limit
from postpress_async._cli.report import report
from postpress_async._cli.rotate import retry_failed, rotate
from postpress_async._cli.sandbox import sandbox
from postpress_async._cli.status import status
from postpress_async._cli.update import update
from postpress_async._version import __version__
from postpress_async.errors import ConfigurationError, JournalNotWritableError, RotationError

_SETTINGS: Final = {
    "help_option_names": ["-h", "--help"],
    "auto_envvar_prefix": "POSTPRESS",  # --rate of sandbox is POSTPRESS_SANDBOX_RATE
    "show_default": True,
}


@click.group(context_settings=_SETTINGS, epilog=exit_codes.HELP)
@click.version_option(__version__, allow_from_autoenv=False)  # many an image has a POSTPRESS_VERSION
def cli() -> None:
    """
    Give PostPress accounts new proxies: one, or a whole fleet.

    The API key is read from POSTPRESS_API_KEY, or from --api-key-file. Try it without one:

      postpress-async rotate --sandbox
    """


_COMMANDS: Final = (
    *(rotate, status, report, export, retry_failed),
    *(update, sandbox, cluster_certificates, errors, completion),
)
for _command in _COMMANDS:
    cli.add_command(_command)


def run() -> None:
    """The command line, with every foreseen refusal told in one sentence on standard error."""
    try:
        refuse_secrets(sys.argv[1:])
        sys.exit(cli.main(standalone_mode=False) or exit_codes.ALL_PATCHED)
    except click.UsageError as error:
        error.show()
        sys.exit(exit_codes.BAD_INPUT)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except JournalNotWritableError as error:
        click.echo(f"postpress-async: {error}", err=True)
        sys.exit(exit_codes.HALTED)
    except (ConfigurationError, RotationError, ValueError) as error:
        click.echo(f"postpress-async: {error}", err=True)
        sys.exit(exit_codes.BAD_INPUT)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - nothing is left to flush at exit
        sys.exit(exit_codes.SOME_LEFT)
    except OSError as error:
        if is_file_limit(error):
            click.echo(f"postpress-async: {TOO_MANY_FILES}", err=True)
            sys.exit(exit_codes.HALTED)
        if error.errno != errno.ENOSPC:
            raise
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what could not be written is not tried again
        click.echo(f"postpress-async: standard output cannot be written ({error.strerror})", err=True)
        sys.exit(exit_codes.BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(exit_codes.INTERRUPTED)
