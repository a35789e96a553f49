"""What a module's forward is called with: by which names, and what of it is the same in another call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from reparam.capture import Call, Node
from reparam.errors import Refusal

LITERALS = (type(None), bool, int, float, str)


def unproven(
    call: Call, what: str, remedy: str = "a forward without branches on sizes or values would fold"
) -> Refusal:
    """The refusal to rewrite a forward, for the reason `what`."""
    where = f"{call.path or 'the model itself'} ({type(call.module).__name__})"
    return Refusal(f"the forward of {where} cannot be rewritten: {what}", remedy)


def arguments(call: Call) -> dict[str, Any]:
    """What its module's forward was handed, by name, with the defaults for what was not."""
    try:
        bound = inspect.signature(call.module.forward).bind(*call.args, **call.kwargs)
    except TypeError as error:
        raise unproven(call, f"it is called in another way ({error})") from None
    bound.apply_defaults()
    return bound.arguments


def form(call: Call) -> Any:
    """What is equal for two calls that differ in tensors alone."""
    try:
        return {name: _form(value) for name, value in arguments(call).items()}
    except Refusal:
        return None


def _form(tree: Any) -> Any:
    if isinstance(tree, Node):
        return Node
    if isinstance(tree, Mapping):
        return type(tree), *((key, _form(value)) for key, value in tree.items())
    if isinstance(tree, (tuple, list)):
        return type(tree), *map(_form, tree)
    return type(tree), tree if isinstance(tree, LITERALS) else id(tree)


def bare(form: Any) -> bool:
    """Whether a call is handed tensors alone, each of them by a name of its own."""
    return isinstance(form, dict) and all(value in (Node, (tuple,), (dict,)) for value in form.values())
