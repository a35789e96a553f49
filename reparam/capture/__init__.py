"""The room of capture: one run of a model, written down.

It takes a model and example inputs, in any form that users hand them in (`inputs.py`, `example_inputs.py`), runs the
model once (`recorder.py`) and gives a `Record` (`graph.py`): every operation, every call of a module, and what the
control flow around them may depend on. `ops.py` holds the facts about each operation; `evaluate.py` and `float64.py`
compute recorded values again, exactly.

It never changes the user's model: what a run leaves behind in modules is undone (`snapshot.py`). It draws no
conclusions: what an operation means is said in `rules/`, and what holds for other inputs is proven in `rewrite/`.
"""
