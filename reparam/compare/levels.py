"""How much of a conversion is verified: what the caller may choose, and what a report then says."""

from __future__ import annotations

from typing import Literal, TypeAlias

from reparam.errors import InputError

Verify: TypeAlias = bool | Literal["full", "folds"]
"""What `verify=` takes: True is "full"."""

Checked: TypeAlias = Literal["full", "folds", "none"]
FULL: Checked = "full"
FOLDS: Checked = "folds"
NOTHING: Checked = "none"

_CHOICES: tuple[tuple[Verify, Checked], ...] = ((True, FULL), ("full", FULL), ("folds", FOLDS), (False, NOTHING))


def chosen(verify: object) -> Checked:
    """What is to be checked. Raises InputError for anything but the choices."""
    found = next((checked for given, checked in _CHOICES if given == verify), None)
    if found is None:
        raise InputError(
            f"verify={verify!r} is not known; choose 'full' (or True: every fold, and the whole model), 'folds' (each "
            "fold alone) or False"
        )
    return found
