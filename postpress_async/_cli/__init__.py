"""The command ``postpress-async``."""

import errno
import sys
from typing import Final, NoReturn

import click

from postpress_async._cli import exit_codes
from postpress_async._cli.export import export, report
from postpress_async._cli.history import history
from postpress_async._cli.proxies import proxies
from postpress_async._cli.rotate import retry_failed, rollback, rotate
from postpress_async._cli.sandbox import sandbox
from postpress_async._cli.secret_input import refuse_secrets
from postpress_async._cli.status import status
from postpress_async._cli.terminal import TOO_MANY_FILES, discard_stdout, is_file_limit
from postpress_async._cli.tools import cluster_certificates, completion, errors
from postpress_async._cli.update import update
from postpress_async._version import __version__
from postpress_async.errors import ConfigurationError, JournalNotWritableError, RotationError

_SETTINGS: Final = {
    "help_option_names": ["-h", "--help"],
    "auto_envvar_prefix": "POSTPRESS",  # so that `sandbox --rate` reads POSTPRESS_SANDBOX_RATE
    "show_default": True,
    "max_content_width": 100,
}


class _InOrder(click.Group):
    """A group whose help lists the commands in the order in which they were added, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


@click.group(cls=_InOrder, context_settings=_SETTINGS, epilog=exit_codes.HELP)
@click.version_option(__version__, allow_from_autoenv=False)  # container images often set POSTPRESS_VERSION
def cli() -> None:
    """
    Give PostPress accounts new proxies: one account, or a whole fleet.

    The API key is read from the environment variable POSTPRESS_API_KEY, or from a file (--api-key-file). Try
    the command without an API key:

      postpress-async rotate --sandbox
    """


for _command in (
    *(rotate, status, report, export, history, rollback, retry_failed),
    *(proxies, update, sandbox, errors, cluster_certificates, completion),
):
    cli.add_command(_command)


def run() -> None:
    """Run the command line and exit. Report expected errors in one line on standard error."""
    try:
        refuse_secrets(sys.argv[1:])
        sys.exit(cli.main(standalone_mode=False) or exit_codes.ALL_PATCHED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except JournalNotWritableError as error:
        _fail(error, exit_codes.HALTED)
    except (ConfigurationError, RotationError, ValueError) as error:
        _fail(error, exit_codes.BAD_INPUT)
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        discard_stdout()
        sys.exit(exit_codes.SOME_LEFT)
    except OSError as error:
        if is_file_limit(error):
            _fail(TOO_MANY_FILES, exit_codes.HALTED)
        if error.errno != errno.ENOSPC:
            raise
        discard_stdout()
        _fail(f"standard output cannot be written ({error.strerror})", exit_codes.BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(exit_codes.INTERRUPTED)


def _fail(message: object, code: int) -> NoReturn:
    click.echo(f"postpress-async: {message}", err=True)
    sys.exit(code)
