"""What a module's forward is called with: by which names, and what of it is the same in another call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import CodeType
from typing import Any

from reparam.capture.bytecode import asks, hands_on, named
from reparam.capture.graph import Call, Node, has_literals
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


def instructed(call: Call) -> bool:
    """Whether its own code may go by what its forward was handed, or by what it was not.

    It may by all that is no tensor, such as a flag, but not by what is in `**kwargs` that it only hands on as such; and
    by whether there is a tensor, where it asks for that.
    """
    code, kwargs = _code(call), call.kwargs
    if code is not None and hands_on(code):
        kwargs = {name: value for name, value in kwargs.items() if name in named(code)}
    return has_literals((call.args, kwargs)) or asking(call)


def asking(call: Call) -> bool:
    """Whether its forward asks, in its own code, if one of its arguments is there, or how many there are in it."""
    code = _code(call)
    return code is not None and asks(code)


def _code(call: Call) -> CodeType | None:
    """The code of its module's forward, decorators aside, where that is in Python."""
    function = inspect.unwrap(call.module.forward)
    return function.__code__ if inspect.isfunction(function) or inspect.ismethod(function) else None


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
