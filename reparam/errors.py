"""The errors of this package. Each says where, what, why, and what the user can do.

A `Refusal` says why an operation is not folded and what would change that. It is caught, kept and reported as a result.
A `ReparamError` is a user's mistake or a failed check: it ends the call, and the user's model and files stay as they
were.
"""

from __future__ import annotations

import unicodedata

_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode categories: control, format, surrogate, ...


class Refusal(Exception):
    """Why a fold would not be exact, or cannot be written back. `remedy` says what would change that."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}" if self.remedy else self.reason


class BorderRefusal(Refusal):
    """A fold would be exact inside an image and wrong at its border."""


class ReparamError(Exception):
    """The base class of all errors that this package raises on purpose. Its text is safe in a terminal."""

    def __str__(self) -> str:
        return visible(super().__str__())


class TrainModeError(ReparamError):
    """A model, or a part of it, is in train mode, where it computes something else than when it is deployed."""


class InputError(ReparamError):
    """An argument or a file cannot be used: inputs of the wrong form, a `keep` that matches nothing, a damaged file."""


class ModelError(ReparamError):
    """The model cannot be used: it fails on its own inputs, holds non-finite weights or an unsupported dtype."""


class VerificationError(ReparamError):
    """Two models that must be equal are not. Nothing has been changed."""


def visible(text: str, keep: str = "\n\t") -> str:
    """The text with its invisible characters escaped as in Python's literals, except for those to keep.

    Names come from files and from other people's code. A control character can command a terminal, a bidirectional mark
    can reorder what a person reads, and a lone surrogate cannot be printed at all.
    """
    hidden = {char for char in set(text) - set(keep) if unicodedata.category(char) in _INVISIBLE}
    return text.translate({ord(char): char.encode("unicode_escape").decode() for char in hidden})


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the name of its class where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
