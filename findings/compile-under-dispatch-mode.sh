#!/usr/bin/env bash
# torch 2.13.0, torch.compile: one call under a TorchDispatchMode turns compilation off for that function.
#
# torch.compile runs a frame eagerly while a TorchDispatchMode of the user is active (FlopCounterMode is one). One would
# expect the next call, outside the mode, to use compiled code. It does not: the code object is marked as skipped, and
# stays eager for other shapes and for a new torch.compile() wrapper around the same function. The same holds for a
# function that was compiled and ran compiled before. Results are right and no warning is printed: counting the
# operations of a compiled model before timing it means timing eager code.
# fullgraph=True raises instead. torch._dynamo.reset() lifts the mark.
#
# Output seen (Python 3.11, Linux, CPU), as runs of the compiled code:
#   torch 2.13.0
#   first call, under the mode                      0
#   next call, outside the mode                     0
#   another shape                                   0
#   a new wrapper around the function               0
#   after torch._dynamo.reset()                     1
#   a function that compiles first                  1
#   the same again                                  1
#   the same under the mode                         0
#   the same, outside the mode                      0
#   fullgraph=True, first call, under the mode      RuntimeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import torch
from torch.utils.flop_counter import FlopCounterMode

runs = 0


def backend(graph, inputs):
    def compiled(*args):
        global runs
        runs += 1
        return graph.forward(*args)

    return compiled


def fresh():
    def function(x, w):
        return torch.relu(x @ w) + 1

    return function


results = []


def report(name, call, expected):
    global runs
    runs = 0
    try:
        call()
        actual = runs
    except RuntimeError as error:
        actual = type(error).__name__
    results.append(actual == expected)
    print(f"{name:48}{actual}")


torch.manual_seed(0)
x, w, wider = torch.randn(3, 4), torch.randn(4, 5), torch.randn(4, 6)


def under_mode(function):
    with FlopCounterMode(display=False):
        function(x, w)


print("torch", torch.__version__.split("+")[0])
plain = fresh()
compiled = torch.compile(plain, backend=backend)
report("first call, under the mode", lambda: under_mode(compiled), 0)
report("next call, outside the mode", lambda: compiled(x, w), 0)
report("another shape", lambda: compiled(x, wider), 0)
report("a new wrapper around the function", lambda: torch.compile(plain, backend=backend)(x, w), 0)
torch._dynamo.reset()
report("after torch._dynamo.reset()", lambda: compiled(x, w), 1)
other = torch.compile(fresh(), backend=backend)
torch._dynamo.reset()
report("a function that compiles first", lambda: other(x, w), 1)
report("the same again", lambda: other(x, w), 1)
report("the same under the mode", lambda: under_mode(other), 0)
report("the same, outside the mode", lambda: other(x, w), 0)
torch._dynamo.reset()
whole = torch.compile(plain, backend=backend, fullgraph=True)
report("fullgraph=True, first call, under the mode", lambda: under_mode(whole), "RuntimeError")
raise SystemExit(0 if all(results) else "the behaviour has changed")
PY
"$work/venv/bin/python" "$work/check.py"
