"""What clfew prints: results on stdout, everything else on stderr."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clfew.errors import UserError

log_console = Console(stderr=True, highlight=False)
out_console = Console(highlight=False)

is_command = False
"""Whether this process is the `clfew` command, and not a program that calls clfew."""

_PLAIN_SECONDS = 10.0


def say(text: str) -> None:
    """Prints a line on stderr."""
    # As Text, because rich would take [name] in a str for markup and :name: for an emoji.
    log_console.print(Text(printable(text)), soft_wrap=True)


def next_command(command: str) -> None:
    """Prints the command to type next on stderr."""
    log_console.print(Text.assemble("next: ", (printable(command), "bold cyan")), soft_wrap=True)


def show_error(error: UserError) -> None:
    """Prints an error and its hint on stderr."""
    log_console.print(Text.assemble(("error: ", "bold red"), printable(error.message)), soft_wrap=True)
    log_console.print(Text.assemble(("hint: ", "bold cyan"), printable(error.hint)), soft_wrap=True)


def printable(text: str) -> str:
    """Returns `text` with control characters spelled out: a file name must not control the terminal."""
    return "".join(c if c.isprintable() or c == " " else repr(c)[1:-1] for c in text)


def plural(count: int, word: str, words: str | None = None) -> str:
    """Returns a number of things in words. words: for several, if that is not the word and an s."""
    return f"{count:,} {word if count == 1 else words or word + 's'}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], right_align: bool = True) -> None:
    """Prints a table on stdout. Columns after the first are right-aligned if `right_align` is set."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index and right_align else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    out_console.print(table)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """Yields update(done, total, note=""): a bar on a terminal, a plain line every 10 s elsewhere."""
    if not log_console.is_terminal:
        yield _plain_progress(description)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=log_console, transient=False) as progress:
        task = progress.add_task(description, total=None, note="")
        yield lambda done, total, note="": progress.update(task, completed=done, total=total, note=note)


def _plain_progress(description: str) -> Callable[..., None]:
    started = last = time.monotonic()

    def update(done: float, total: float, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_SECONDS or (done >= total and now - started >= _PLAIN_SECONDS):
            left = (now - started) / max(done, 1e-9) * (total - done)
            percent = 100 * done / max(total, 1)
            say(f"{description} {percent:.0f} %, {left:.0f} s left {note}".rstrip())
            last = now

    return update


def write_out(text: str) -> None:
    """Writes text for people to stdout, `printable` if stdout is a terminal. Signs that the locale has
    not are replaced."""
    _write("\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text, None)


def write_data(text: str) -> None:
    """Writes CSV or JSON to stdout: exactly as it is, and in UTF-8 whatever the locale is. On a terminal
    it is like `write_out`."""
    if sys.stdout.isatty():
        write_out(text)
    else:
        _write(text, getattr(sys.stdout, "buffer", None))


def _write(text: str, binary: BinaryIO | None) -> None:
    """Writes text to stdout, or as UTF-8 to the stream of bytes below it.

    If the reader has gone, as in `clfew predict … | head`, it ends the process quietly, as SIGPIPE
    would.
    """
    # A name that is not UTF-8 holds lone surrogates, which a stream cannot encode.
    content = text.encode("utf-8", "backslashreplace")
    try:
        sys.stdout.flush()
        if binary is None:
            sys.stdout.write(content.decode())
        else:
            binary.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
