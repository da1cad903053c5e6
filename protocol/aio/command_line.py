"""How both commands run: click's errors and ours as one sentence each on stderr, and exit codes (0, 1 failed, 2 usage, 130 interrupted).

Imports click alone, so that `--help` is quick; what a mistake is, is looked up when there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None) -> int:
    """Run the command line and return its exit code; `arguments` without the program's name, sys.argv's where there are none."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return int(command.main(given, prog_name=name, standalone_mode=False) or 0)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        code, sentences = _told(error)
        if not code:
            raise
        for sentence in sentences:
            click.echo(f"error: {sentence}", err=True)
        return code


def _told(error: Exception) -> tuple[int, tuple[str, ...]]:
    """The exit code and sentences for an error that a user can cause; 0 for one that is ours."""
    from protocol.aio.settings import SettingsError

    if isinstance(error, SettingsError):
        return 2, error.problems
    from protocol.aio.process import UserError

    return (1, (str(error),)) if isinstance(error, UserError) else (0, ())
