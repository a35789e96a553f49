"""What goes wrong, in words a user can act on.

A `Refusal` is a result, not an accident: it says why one operation was not folded and what would change that. It is
caught, kept and reported. A `ReparamError` is a user's mistake or a failed check; it ends the call and leaves the
user's model and files as they were.
"""

from __future__ import annotations


class Refusal(Exception):
    """A fold that would not be exact (or cannot be written back); `remedy` says what would change it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}" if self.remedy else self.reason


class BorderRefusal(Refusal):
    """A fold that would be exact in the middle of an image and wrong at its border."""


class ReparamError(Exception):
    """Base of every error that this package raises on purpose; its text says where, what, why and what to do."""


class TrainModeError(ReparamError):
    """A model, or a part of it, is in train mode: what it computes is not what will be deployed."""


class InputError(ReparamError):
    """An argument cannot be used: inputs of the wrong form, a `keep` that matches nothing, an unknown cost."""


class ModelError(ReparamError):
    """The model cannot be used: it fails on its own inputs, holds non-finite weights or an unsupported dtype."""


class VerificationError(ReparamError):
    """Two models that must be equal are not. Nothing has been changed."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, and its class where it says nothing."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
