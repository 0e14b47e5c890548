"""The command ``postpress-async``, and ``python -m postpress_async``."""

import sys


def main() -> None:
    """Run the command line. If click or rich is missing, exit and name the extra to install."""
    try:
        from postpress_async._cli import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in {"click", "rich"}:
            raise
        sys.exit(f"postpress-async requires {error.name}: pip install 'postpress-async[cli]'")
    run()


if __name__ == "__main__":
    main()
