"""The one exception that is written for users, and the checks that raise it most."""

import math
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any

LARGEST_SEED = 2**31 - 1
"""The generators of torch, numpy and scikit-learn all take it."""


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message says what was wrong (with its value), what is allowed, and what to do. The command
    line prints it without a traceback; a library user may catch it as a ``ValueError``.
    """


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """UserError unless ``value`` is a whole number from ``least`` on, up to ``most``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        end = "on" if most is None else f"to {most}"
        raise UserError(
            f"{name}={value} is not possible; it is a whole number from {least} {end}"
            f"{_no_text(value)}."
        )


def check_counts(name: str, values: Any, example: Sequence[int]) -> None:
    """UserError unless ``values`` is a list of whole numbers from 1 on, as ``example`` is."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError(f"{name}={values} is not possible; it is a list, {example} for example.")
    for value in values:
        check_count(name, value)


def check_seed(name: str, value: Any) -> None:
    """UserError unless ``value`` can seed every generator of random numbers."""
    check_count(name, value, 0, LARGEST_SEED)


def check_switch(name: str, value: Any) -> None:
    """UserError unless ``value`` is true or false: anything else would count as one of them."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value} is not possible; it is true or false{_no_text(value)}.")


def check_text(name: str, value: Any, example: str) -> None:
    """UserError unless ``value`` is text or a path, not empty, and can be written down."""
    if not isinstance(value, str | PathLike) or not str(value):
        raise UserError(f"{name}={value} is not possible; it is text, {example} for example.")
    if printable(value) != str(value):
        raise UserError(
            f"{name}={printable(value)} is not possible; it is text in UTF-8, {example} for "
            "example. Give the file or folder another name."
        )


def printable(text: str | PathLike) -> str:
    """Text or a path; what is no UTF-8 in it, as names of files may be, is escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def check_number(name: str, value: Any, fits: Callable[[float], bool], allowed: str) -> None:
    """UserError unless ``value`` is a finite number that ``fits``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not fits(value):
        raise UserError(
            f"{name}={value} is not possible; it is a number {allowed}{_no_text(value)}."
        )


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name}={value} is not known; choose one of {', '.join(choices)}.")


def _no_text(value: Any) -> str:
    """'0.5' in quotes looks like the number that it is not."""
    return ", not text" if isinstance(value, str) else ""
