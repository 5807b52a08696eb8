"""The command line: parses, calls, prints. What it does is in the modules it calls."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from trajmill.cli.common import app
from trajmill.errors import TrajmillError

# isort: off
from trajmill.cli import making, using, looking, models  # noqa: F401 (they add their commands, in the order of help)
# isort: on


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"trajmill: {' '.join(message.split())}\n")
    raise SystemExit(code)


def main() -> None:
    """Run the command line: one line and exit code 2 for what the user can put right, 130 when interrupted."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:  # a wrong flag or argument
        _fail(f"{getattr(error, 'format_message', error.__str__)()} (see trajmill --help)", 2)
    except TrajmillError as error:
        _fail(str(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    if code == 130:  # typer says so too when Ctrl-C came
        _fail("stopped; run the same command again to go on", 130)
    raise SystemExit(code or 0)
