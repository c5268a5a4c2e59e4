"""UserError, whose message is written for users, and the common checks that raise it."""

import math
from collections.abc import Callable, Collection, Sequence
from os import PathLike
from typing import NoReturn

LARGEST_SEED = 2**31 - 1
"""Largest seed that the generators of torch, numpy and scikit-learn all accept."""


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message says what was wrong (with its value), what is allowed, and what to do. The command
    line prints it without a traceback; a library user may catch it as a ``ValueError``.
    """


def check_count(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise UserError unless ``value`` is an integer from ``least`` to ``most`` (None: any)."""
    if type(value) is not int or value < least or (most is not None and value > most):
        _refuse(
            name, value, f"a whole number from {least} {'on' if most is None else f'to {most}'}"
        )


def check_counts(name: str, values: object, example: Sequence[int]) -> None:
    """Raise UserError unless ``values`` is a list of positive integers, such as ``example``."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError(f"{name}={values} is not possible; it is a list, {example} for example.")
    for value in values:
        check_count(name, value)


def check_seed(name: str, value: object) -> None:
    """Raise UserError unless ``value`` can seed every random number generator."""
    check_count(name, value, 0, LARGEST_SEED)


def check_switch(name: str, value: object) -> None:
    """Raise UserError unless ``value`` is a bool; anything else would pass for true or false."""
    if not isinstance(value, bool):
        _refuse(name, value, "true or false")


def check_number(name: str, value: object, fits: Callable[[float], bool], allowed: str) -> None:
    """Raise UserError unless ``value`` is a finite number that ``fits`` (in words: ``allowed``)."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and fits(value))
    ):
        _refuse(name, value, f"a number {allowed}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name}={value} is not known; choose one of {', '.join(choices)}.")


def check_text(name: str, value: object, example: str) -> None:
    """Raise UserError unless ``value`` is non-empty text, or a path, that UTF-8 can encode."""
    if not isinstance(value, str | PathLike) or not str(value):
        raise UserError(f"{name}={value} is not possible; it is text, {example} for example.")
    if printable(value) != str(value):
        raise UserError(
            f"{name}={printable(value)} is not possible; it is text in UTF-8, {example} for "
            "example. Give the file or folder another name."
        )


def printable(text: str | PathLike) -> str:
    """Return text or a path, with what UTF-8 cannot encode (in file names, say) escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _refuse(name: str, value: object, wanted: str) -> NoReturn:
    # '0.5' in quotes looks like a number but is text
    hint = ", not text" if isinstance(value, str) else ""
    raise UserError(f"{name}={value} is not possible; it is {wanted}{hint}.")
