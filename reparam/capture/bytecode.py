"""Where code was interrupted, and what it was about to do, read off its instructions."""

from __future__ import annotations

import dis
import inspect
import traceback
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from types import CodeType, FrameType

from torch import nn

_BLANK = ("TO_BOOL", "CACHE", "NOT_TAKEN")
_ENDS = ("RETURN", "YIELD", "FOR_ITER", "SEND", "END_FOR")  # as jumps, these leave the straight way to an exception
_HARMLESS = ("TypeError", "AttributeError", "NameError", "ImportError", "ModuleNotFoundError")  # at no size, or at all
_CATCHES = ("CHECK_EXC_MATCH", "CHECK_EG_MATCH", "RETURN_VALUE", "RETURN_CONST")


def unpacked(frame: FrameType) -> int | None:
    """The number of names that a frame is just unpacking something into, as in `a, b = x.chunk(2, 1)`."""
    step = next((step for step in dis.get_instructions(frame.f_code) if step.offset == frame.f_lasti), None)
    return int(step.argval) if step is not None and step.opname == "UNPACK_SEQUENCE" else None


def takes_all(frame: FrameType | None) -> bool:
    """Whether code is about to unpack what it is calling into names, or to take an entry of it, counted from the first.

    With another number of entries it would raise an exception.
    """
    while frame is not None and of_torch(frame):
        frame = frame.f_back
    return frame is not None and _takes_all(frame.f_code, frame.f_lasti)


@lru_cache(maxsize=4096)
def _takes_all(code: CodeType, at: int) -> bool:
    steps = [step for step in steps_of(code) if step.offset > at][:2]
    names = [step.opname for step in steps]
    indexed = names[:1] == ["LOAD_CONST"] and isinstance(index := steps[0].argval, int) and index >= 0
    return names[:1] == ["UNPACK_SEQUENCE"] or (indexed and names[1].startswith("BINARY_"))


def discarded(frame: FrameType | None) -> bool:
    """Whether a text that is just being made is for a reader: in an exception, or in a call that returns nothing.

    Torch's own code makes its texts for nobody else.
    """
    if frame is None or of_torch(frame):
        return True
    steps = (step.opname for step in steps_of(frame.f_code) if step.offset > frame.f_lasti)
    return next((name for name in steps if name.startswith(_USES)), "") in ("POP_TOP", "RAISE_VARARGS")


_USES = tuple("POP_TOP RAISE_VARARGS STORE RETURN YIELD COMPARE_OP CONTAINS_OP POP_JUMP JUMP_IF".split())


def required(frame: FrameType) -> bool | None:
    """What the condition that a frame is looking at has to be: otherwise the frame goes straight to an exception.

    So it is in `assert condition` and `if condition: raise ...`. None elsewhere, and where the exception is caught.
    """
    steps = steps_of(frame.f_code)
    jump = next((i for i, step in enumerate(steps) if step.offset >= frame.f_lasti), len(steps))
    if jump == len(steps) or not (name := steps[jump].opname).startswith("POP_JUMP"):
        return None
    if not name.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    jumps = name.endswith("IF_TRUE")  # what it is where the frame jumps
    target = next(i for i, step in enumerate(steps) if step.offset >= steps[jump].argval)
    for start, condition in ((jump + 1, not jumps), (target, jumps)):
        if raises(steps[start:]) and not any(map(_catches, _callers(frame))):
            return not condition
    return None


@lru_cache(maxsize=64)
def steps_of(code: CodeType) -> tuple[dis.Instruction, ...]:
    """What a piece of code does; every trace asks anew."""
    return tuple(step for step in dis.get_instructions(code) if step.opname not in _BLANK)


def raises(steps: Sequence[dis.Instruction]) -> bool:
    """Whether the steps lead to an exception, whatever happens."""
    for step in steps:
        if step.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in step.opname or step.opname.startswith(_ENDS):
            return False
    return False


def of_torch(frame: FrameType) -> bool:
    """Whether the code of a frame is torch's own."""
    return str(frame.f_globals.get("__name__", "")).startswith("torch.")


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame and those that it was called from, up to this package's own."""
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("reparam."):
        if not of_torch(frame):
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


def attempted(frame: FrameType | None, last: str) -> bool:
    """Whether code from this frame up to that of the function `last` goes on where something raises, at some sizes."""
    while frame is not None and frame.f_code.co_name != last:
        own = frame.f_globals.get("__name__", "").startswith(("torch.", "reparam."))
        if not own and getattr(frame.f_code, "co_exceptiontable", True) and _survives(frame.f_code, frame.f_lasti):
            return True
        frame = frame.f_back
    return False


def caller(frame: FrameType | None) -> FrameType | None:
    """The frame that has called the module in whose call this frame is."""
    while frame is not None and frame.f_code is not nn.Module.__call__.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_back


@lru_cache(maxsize=4096)
def _survives(code: CodeType, at: int) -> bool:
    """Whether code may go on after an exception that is raised where it is at."""
    steps = list(dis.get_instructions(code))
    entries = getattr(dis.Bytecode(code), "exception_entries", None)
    if entries is None:  # up to Python 3.10
        return any(step.opname == "SETUP_FINALLY" for step in steps)
    targets = [each.target for each in entries if each.start <= at < each.end]
    return any(_ends([step for step in steps if step.offset >= start], code) for start in targets)


def _ends(handler: Sequence[dis.Instruction], code: CodeType) -> bool:
    """Whether a handler ends exceptions that an input may raise."""
    names = [step.opname for step in handler]
    if names[0] != "PUSH_EXC_INFO":
        return False  # of a generator, or a comprehension
    if names[1] == "WITH_EXCEPT_START":
        return "suppress" in code.co_names
    if not _goes_on(names):
        return False
    checks = [i for i, name in enumerate(names) if name == "CHECK_EXC_MATCH"]
    by_name = names[1] != "POP_TOP" and bool(checks)
    return not (by_name and all(_named(handler[:i]) <= {*_HARMLESS} for i in checks))


def _named(steps: Sequence[dis.Instruction]) -> set[str]:
    """The exceptions that the last of some steps names, or puts together."""
    last = steps[-1]
    found = steps[-1 - int(last.arg or 0) : -1] if last.opname == "BUILD_TUPLE" else [last]
    return {str(each.argval) if each.opname.startswith("LOAD_GLOBAL") else "" for each in found}


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
