"""A command line whose expected failures are one plain line on stderr: who says it, what is wrong, where to look."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from router.errors import RouterError


class Plain(click.Group):
    """A group whose expected failures are one plain line, and exit code 1 (2: it was called wrongly)."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra.setdefault("prog_name", "warmroute")
        return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with plainly():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with plainly():
            return super().invoke(ctx)


class OneOf(click.Choice[str]):
    """One of some words; the one that was meant is named."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        close = difflib.get_close_matches(str(value), map(str, self.choices), n=1)
        known = ", ".join(map(str, self.choices))
        return f"{str(value)!r} is not one of {known}" + (f"; did you mean {close[0]}?" if close else "")


@contextmanager
def plainly() -> Iterator[None]:
    """Within, whatever click and we expect becomes one line, and the end."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        who = error.ctx.command_path if error.ctx is not None else "warmroute"
        raise _said(who, f"{error.format_message().rstrip('.')} (see {who} --help)", error.exit_code) from None
    except click.ClickException as error:
        raise _said("warmroute", error.format_message(), error.exit_code) from None
    except RouterError as error:
        raise _said("warmroute", error.message, 1) from None
    except BrokenPipeError:  # whoever read it has enough: click's to end
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        raise _said("warmroute", f"{where}{error.strerror or error}", 1) from None
    except KeyboardInterrupt:
        sys.exit(130)


def _said(who: str, message: str, code: int) -> click.exceptions.Exit:
    click.echo(f"{who}: {' '.join(message.split())}", err=True)
    return click.exceptions.Exit(code)
