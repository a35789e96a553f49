"""How much of a conversion is verified: what `verify=` may be, and the level that it stands for."""

from __future__ import annotations

from typing import Literal, TypeAlias

from reparam.errors import InputError

Verify: TypeAlias = bool | Literal["full", "folds"]
"""What `verify=` may be; True means "full"."""

Level: TypeAlias = Literal["full", "folds", "none"]
"""What has been verified: each fold and the whole model, each fold alone, or nothing."""

FULL: Level = "full"
FOLDS: Level = "folds"
NONE: Level = "none"

_LEVELS: tuple[tuple[Verify, Level], ...] = ((True, FULL), ("full", FULL), ("folds", FOLDS), (False, NONE))


def level_of(verify: object) -> Level:
    """The level that `verify=` asks for. Raises InputError for any other value."""
    level = next((level for value, level in _LEVELS if value == verify), None)
    if level is None:
        raise InputError(
            f"verify={verify!r} is not known; choose 'full' (or True: each fold, and the whole model), 'folds' (each "
            "fold alone) or False"
        )
    return level
