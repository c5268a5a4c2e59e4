"""The one exception that is written for users, and the checks that raise it most."""

import math
from collections.abc import Callable, Iterable
from typing import Any


class UserError(ValueError):
    """Something the user asked for cannot be done.

    The message says what was wrong (with its value), what is allowed, and what to do. The command
    line prints it without a traceback; a library user may catch it as a ``ValueError``.
    """


def check_count(name: str, value: Any, least: int = 1) -> None:
    """UserError unless ``value`` is a whole number from ``least`` on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name}={value} is not possible; it is a whole number from {least} on.")


def check_number(name: str, value: Any, fits: Callable[[float], bool], allowed: str) -> None:
    """UserError unless ``value`` is a finite number that ``fits``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not fits(value):
        raise UserError(f"{name}={value} is not possible; it is a number {allowed}.")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name}={value} is not known; choose one of {', '.join(choices)}.")
