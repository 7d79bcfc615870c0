"""A magic's line to a spec, with help and completion from the same fields. No IPython here."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn, TypeVar

from raykit.errors import OptionError

Spec = TypeVar("Spec")
Make = Callable[..., Any]
"""Makes a value of a kind from what stands in a line, by the names of its fields."""

NOT_GIVEN = object()


class HelpAsked(Exception):  # noqa: N818  (a request, not an error)
    """``--help`` stood in the line; the argument is the text to show."""


def parse(kind: type[Spec], line: str, *, command: str, make: Make | None = None) -> Spec:
    """Build a ``kind`` from the options in ``line``, by its constructor or by ``make``.

    Raises:
        OptionError: an unknown option (the nearest is named), a value that does not fit, a missing argument.
        HelpAsked: the line asks for help.
    """
    found: Spec = parse_all((kind,), line, command=command, make=make)[0]
    return found


def parse_all(kinds: tuple[type[Any], ...], line: str, *, command: str, make: Make | None = None) -> list[Any]:
    """Build one value of each kind from the options in one line; otherwise as :func:`parse`. ``make`` is for the first."""
    words = split(line)
    parser = _parser(kinds, command)
    if "--help" in words or "-h" in words:
        raise HelpAsked(parser.format_help())
    found, unknown = parser.parse_known_args(words)
    if unknown:
        raise _unknown(unknown[0], [flag for kind in kinds for flag in _flags(kind)], command)
    try:
        makes = (make or kinds[0], *kinds[1:])
        return [build(**_given(found, kind)) for build, kind in zip(makes, kinds, strict=True)]
    except OptionError:
        raise
    except (TypeError, ValueError) as exc:
        raise OptionError(f"{command}: {exc}", f"See {command} --help.") from exc


def split(line: str) -> list[str]:
    """Split a line as a shell would, without a trailing ``# comment``; ``digits#2`` is one word.

    Raises:
        OptionError: a quote is not closed.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError as exc:
        raise OptionError(f"{line.strip()}: {exc}.", "Close the quote.") from exc
    comment = next((place for place, word in enumerate(words) if word.startswith("#")), len(words))
    return words[:comment]


def complete(kinds: tuple[type[Any], ...], text: str) -> list[str]:
    """Give the options of ``kinds`` that start with ``text``."""
    return sorted(flag for kind in kinds for flag in _flags(kind) if flag.startswith(text))


def nearest(word: str, known: Sequence[str]) -> str:
    """Give ``Did you mean X?`` or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{self.prog}: {message}.", f"See {self.prog} --help.")


def _parser(kinds: tuple[type[Any], ...], command: str) -> argparse.ArgumentParser:
    description = (kinds[0].__doc__ or "").partition("\n\n")[0]
    parser = _Parser(prog=command, description=description, add_help=False, allow_abbrev=False)
    for each in (each for kind in kinds for each in _options_of(kind)):
        flags, text, read, metavar = each.metadata["option"]
        text = text.replace("%", "%%")  # argparse takes its help for a format
        if read is None:
            parser.add_argument(*flags, dest=each.name, action="store_true", default=NOT_GIVEN, help=text)
        elif flags[0].startswith("-"):
            parser.add_argument(
                *flags, dest=each.name, type=_reader(read), default=NOT_GIVEN, help=text, metavar=metavar or "VALUE"
            )
        else:
            parser.add_argument(each.name, type=_reader(read), nargs="?", default=NOT_GIVEN, help=text, metavar=metavar or flags[0])
    return parser


def _reader(read: Any) -> Any:
    def with_sentence(text: str) -> Any:
        try:
            return read(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return with_sentence


def _options_of(kind: type[Any]) -> list[Field[Any]]:
    return [each for each in fields(kind) if "option" in each.metadata]


def _given(found: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    values = {each.name: getattr(found, each.name) for each in _options_of(kind)}
    return {name: value for name, value in values.items() if value is not NOT_GIVEN}


def _flags(kind: type[Any]) -> list[str]:
    return [flag for each in _options_of(kind) for flag in each.metadata["option"][0] if flag[0] == "-"]


def _unknown(word: str, known: list[str], command: str) -> OptionError:
    what = "option" if word.startswith("-") else "word"
    return OptionError(f"{command}: unknown {what} {word}.", f"{nearest(word, known)} See {command} --help.")
