"""Where code was interrupted, and what it was about to do, read off its instructions."""

from __future__ import annotations

import dis
import inspect
import traceback
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from types import CodeType, FrameType

from torch import nn

_BLANK = ("TO_BOOL", "CACHE", "NOT_TAKEN")
_ENDS = ("RETURN", "YIELD", "FOR_ITER", "SEND", "END_FOR")  # as jumps, these leave the straight way to an exception
_CATCHES = ("CHECK_EXC_MATCH", "CHECK_EG_MATCH", "RETURN_VALUE", "RETURN_CONST")


def unpacked(frame: FrameType) -> int | None:
    """The number of names that a frame is just unpacking something into, as in `a, b = x.chunk(2, 1)`."""
    step = next((step for step in dis.get_instructions(frame.f_code) if step.offset == frame.f_lasti), None)
    return int(step.argval) if step is not None and step.opname == "UNPACK_SEQUENCE" else None


def required(frame: FrameType) -> bool | None:
    """What the condition that a frame is looking at has to be: otherwise the frame goes straight to an exception.

    So it is in `assert condition` and `if condition: raise ...`. None elsewhere, and where the exception is caught.
    """
    steps = _steps(frame.f_code)
    jump = next((i for i, step in enumerate(steps) if step.offset >= frame.f_lasti), len(steps))
    if jump == len(steps) or not (name := steps[jump].opname).startswith("POP_JUMP"):
        return None
    if not name.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    jumps = name.endswith("IF_TRUE")  # what it is where the frame jumps
    target = next(i for i, step in enumerate(steps) if step.offset >= steps[jump].argval)
    for start, condition in ((jump + 1, not jumps), (target, jumps)):
        if _raises(steps[start:]) and not any(map(_catches, _callers(frame))):
            return not condition
    return None


@lru_cache(maxsize=64)
def _steps(code: CodeType) -> tuple[dis.Instruction, ...]:
    """What a piece of code does; every trace asks anew."""
    return tuple(step for step in dis.get_instructions(code) if step.opname not in _BLANK)


def _raises(steps: Sequence[dis.Instruction]) -> bool:
    """Whether the steps lead to an exception, whatever happens."""
    for step in steps:
        if step.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in step.opname or step.opname.startswith(_ENDS):
            return False
    return False


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame and those that it was called from, up to this package's own."""
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("reparam."):
        if not frame.f_globals.get("__name__", "").startswith("torch."):
            yield frame
        frame = frame.f_back


def _catches(frame: FrameType) -> bool:
    """Whether the frame goes on if there is an exception where it is now."""
    steps = list(dis.get_instructions(frame.f_code))
    entries = getattr(dis.Bytecode(frame.f_code), "exception_entries", None)
    if entries is None:  # up to Python 3.10
        return any(step.opname == "SETUP_FINALLY" for step in steps)
    handlers = [each.target for each in entries if each.start <= frame.f_lasti < each.end]
    return any(_goes_on([step.opname for step in steps if step.offset >= start]) for start in handlers)


def _goes_on(handler: list[str]) -> bool:
    """Whether a handler may end the exception; those of `with` and `finally` hand it on."""
    if handler[1] in ("WITH_EXCEPT_START", "POP_TOP"):
        return handler[1] == "POP_TOP"  # of `except:`, whatever it is
    return next((name for name in handler if name in (*_CATCHES, "RERAISE")), "RERAISE") in _CATCHES


def line_of(module: nn.Module, opened: Collection[nn.Module], error: Exception) -> str:
    """Where in the user's forward tracing stopped."""
    files = {inspect.getsourcefile(type(each)) for each in (module, *opened) if _has_source(each)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if not frames:
        return ""
    return f"at line {frames[-1].lineno} of {frames[-1].filename}: `{frames[-1].line}` "


def _has_source(module: nn.Module) -> bool:
    try:
        return inspect.getsourcefile(type(module)) is not None
    except TypeError:
        return False
