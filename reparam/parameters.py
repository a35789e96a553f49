"""What code asks of its parameters, read off its instructions."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from types import CodeType

from reparam.frames import raises, steps_of


@lru_cache(maxsize=1024)
def asks(code: CodeType) -> bool:
    """Whether code asks if one of its parameters is anything (or None, or empty), or for its length.

    Not where it raises an exception otherwise.
    """
    steps = _visible(code)
    return any(_counted(steps, i) or _tested(steps, i, "_IF_") for i, name in _loads(steps) if name in named(code))


@lru_cache(maxsize=1024)
def asks_for_result(code: CodeType) -> bool:
    """Whether code asks if one of its other variables, such as what a module returned, is None; with that exception."""
    steps = _visible(code)
    return any(_tested(steps, i, "NONE") for i, name in _loads(steps) if name not in named(code))


def _counted(steps: list[dis.Instruction], load: int) -> bool:
    """Whether the code asks for the length of what the step `load` puts on the stack."""
    before, then = steps[load - 1], steps[load + 1]
    return before.opname.startswith("LOAD_GLOBAL") and before.argval == "len" and "CALL" in then.opname


def _tested(steps: list[dis.Instruction], load: int, jumping: str) -> bool:
    """Whether the code asks if what the step `load` puts on the stack is None, or jumps by it (so: `jumping`)."""
    then, last = steps[load + 1], steps[min(load + 2, len(steps) - 1)]
    none = then.opname == "LOAD_CONST" and then.argval is None and last.opname in ("IS_OP", "COMPARE_OP")
    jump = load + 3 if none else load + 1
    if "JUMP" not in steps[jump].opname or (not none and jumping not in steps[jump].opname):
        return none
    target = next(i for i, step in enumerate(steps) if step.offset >= steps[jump].argval)
    return not (raises(steps[jump + 1 :]) or raises(steps[target:]))


@lru_cache(maxsize=1024)
def hands_on(code: CodeType) -> bool:
    """Whether code does nothing with its `**kwargs` but hand them on as such."""
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return False
    rest = code.co_varnames[len(named(code)) + bool(code.co_flags & inspect.CO_VARARGS)]
    reads = [(step, then) for step, then in pairwise(steps_of(code)) if rest in _loaded(step)]
    known = rest not in code.co_cellvars
    return known and all(_loaded(step)[-1] == rest and then.opname == "DICT_MERGE" for step, then in reads)


def named(code: CodeType) -> tuple[str, ...]:
    """The parameters of code, other than `*args` and `**kwargs`."""
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _loaded(step: dis.Instruction) -> tuple[str, ...]:
    """The variables that an instruction puts on the stack, the top one last."""
    if not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
        return ()
    return step.argval if isinstance(step.argval, tuple) else (step.argval,)


def _visible(code: CodeType) -> list[dis.Instruction]:
    return [step for step in steps_of(code) if step.opname not in ("COPY", "PUSH_NULL")]


def _loads(steps: list[dis.Instruction]) -> Iterator[tuple[int, str]]:
    """The steps that put a variable on top of the stack."""
    yield from ((i, names[-1]) for i, step in enumerate(steps) if (names := _loaded(step)))
