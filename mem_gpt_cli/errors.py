"""What can go wrong, and the exit code that each kind of failure ends a command with.

    MemgptError                  (abstract; 1)
    |- UsageError                 2  a bad recipe, a bad flag, an unknown model
    |  |- UsageErrors            2  several of them
    |  `- RecipeError             2  the same, with file, line and column
    |     `- RecipeErrors         2  several of them, in the order of the file
    |- UnsupportedError           2  this model or option cannot be answered by this lens
    |- GateError                  3  does not fit the budget, or regressed
    |- EnvironmentUnavailableError 4  no device, no network, no weights
    |  `- MissingExtraError       4  an optional package is not installed
    `- IncompleteSweepError       5  a sweep was left before its last cell

Every message is one sentence that says what is wrong, where, and how to mend it: the command line prints it
without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class MemgptError(Exception):
    """Base of every failure that a user can cause or mend."""

    exit_code = 1


class UsageError(MemgptError):
    """A flag, an argument or a model name that cannot be understood."""

    exit_code = 2


class UsageErrors(UsageError):  # noqa: N818  (several of the one above)
    """Several mistakes found in one reading."""

    def __init__(self, errors: Sequence[UsageError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


@contextmanager
def reading(file: str, asked_by: str) -> Iterator[None]:
    """While a text file is read: what cannot be read is one sentence, beginning with who asked for it.

    Raises:
        UsageError: if the file cannot be opened, or is not UTF-8.
    """
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UsageError(f"{asked_by}: cannot read {file}: {why}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{asked_by}: {file} is not UTF-8 text: save it as UTF-8") from error


class Position(NamedTuple):
    """A place in a text: ``line`` and ``column`` count from 1; a flag of one value is its own place."""

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        if self.source.startswith("--") and not self.source.startswith("--set "):
            return self.source
        return f"{self.source}:{self.line}:{self.column}"


class RecipeError(UsageError):
    """A recipe that cannot be used; ``position`` is where, ``None`` for a value that no file holds."""

    def __init__(self, message: str, position: Position | None = None) -> None:
        super().__init__(f"{position}: {message}" if position else message)
        self.message = message
        self.position = position


class RecipeErrors(RecipeError):  # noqa: N818  (several of the one above)
    """Several recipe errors found in one reading, in the order of the file."""

    def __init__(self, errors: Sequence[RecipeError]) -> None:
        UsageError.__init__(self, "\n".join(str(error) for error in errors))
        self.errors = tuple(errors)
        self.message = str(self)
        self.position = errors[0].position if errors else None


class UnsupportedError(MemgptError):
    """The lens cannot answer for this model or this combination of options."""

    exit_code = 2


class GateError(MemgptError):
    """A condition that the user set (a budget, a limit on a regression) does not hold."""

    exit_code = 3


class EnvironmentUnavailableError(MemgptError):
    """Something outside the recipe is missing: a device, the network, a file of weights."""

    exit_code = 4


class MissingExtraError(EnvironmentUnavailableError):
    """An optional package is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"install it with `pip install 'mem-gpt-cli[{extra}]'`"
        )
        self.package = package
        self.extra = extra


class IncompleteSweepError(MemgptError):
    """A sweep ended before its last cell; what was measured is in the CSV."""

    exit_code = 5
