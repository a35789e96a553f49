"""Are two models equal, and which one is faster?

This room takes an original and any candidate, a module or another callable, with example inputs. `verify` gives a
`Verification`: a check per output, each an error against float64 truth and its bound. `benchmark` gives a `Comparison`:
times that were measured in turns. `fold_error` and `Border.error` check single folds before they are made. All of them
measure errors with `error.compare` and judge them by `bounds.Bounds`.

It never changes a model or an input, never takes a tolerance from the caller, and never knows how a candidate was made.
"""
