"""How every command ends: user mistakes become one sentence on stderr, exit codes follow convention."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from simulator.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE


class OneLineErrors(click.Command):
    """Mixed into a click command or group.

    Errors in our own code keep their traceback: only UserError and click's own complaints are caught.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit: 0 success, 2 user mistake, 130 interrupted, 141 reader went away."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        name = prog_name or self.name or "tokenflight"
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
        except UserError as error:
            sys.exit(_complain(name, str(error)))
        except click.ClickException as error:
            sys.exit(_complain(name, _one_line(name, error)))
        except (click.Abort, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # anything else that the system refuses is an error of ours
                raise
            sys.exit(_complain(name, "the output cannot be written: no space left on the device"))
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and write out what it printed; here, because click answers a closed pipe with exit code 1."""
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
            return value
        except BrokenPipeError:
            # What is still buffered would fail once more when the interpreter closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(EXIT_CLOSED_PIPE)


def _complain(name: str, message: str) -> int:
    """One line on stderr; the exit code of a user mistake."""
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def _one_line(name: str, error: click.ClickException) -> str:
    """Click's complaint, suggestions included, with the way to the help behind it."""
    message = error.format_message().rstrip(".")
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else name
    return f"{message}; see: {command} --help" if isinstance(error, click.UsageError) else message
