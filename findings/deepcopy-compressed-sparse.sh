#!/usr/bin/env bash
# torch 2.13.0: a module with a sparse tensor in CSR, CSC or BSR form cannot be deep-copied, though it can be pickled.
#
# COO tensors and compressed ones are both sparse, both go through pickle, torch.save, .double() and load_state_dict.
# One would expect copy.deepcopy of a module that holds one (the adjacency of a graph, as a buffer) to do the same.
# Tensor.__deepcopy__ copies COO tensors with clone(), and asks every other layout for its storage, which a compressed
# tensor does not have: NotImplementedError. torch.optim.swa_utils.AveragedModel copies the model it is given, so weight
# averaging fails with it. Going through pickle, or giving deepcopy a memo with a clone of the tensor, helps.
#
# Output seen (Python 3.11, Linux, CPU):
#   torch 2.13.0
#   layout    deepcopy             AveragedModel        pickle  memo with a clone
#   coo       ok                   ok                   ok      ok
#   csr       NotImplementedError  NotImplementedError  ok      ok
#   csc       NotImplementedError  NotImplementedError  ok      ok
#   bsr       NotImplementedError  NotImplementedError  ok      ok
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/check.py" <<'PY'
import copy
import pickle
import warnings

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

warnings.simplefilter("ignore")  # compressed layouts are in beta
dense = torch.eye(4).roll(1, 0)
layouts = {
    "coo": dense.to_sparse(),
    "csr": dense.to_sparse_csr(),
    "csc": dense.to_sparse_csc(),
    "bsr": dense.to_sparse_bsr((2, 2)),
}


def outcome(copier, model):
    try:
        result = copier(model)
    except Exception as error:
        return type(error).__name__
    held = next(iter(result.buffers()), None) if not isinstance(result, AveragedModel) else result.module.edges
    return "ok" if torch.equal(held.to_dense(), dense) else "wrong"


copiers = {
    "deepcopy": copy.deepcopy,
    "AveragedModel": AveragedModel,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "memo with a clone": lambda model: copy.deepcopy(model, {id(model.edges): model.edges.clone()}),
}
print("torch", torch.__version__.split("+")[0])
print(f"{'layout':10}{'deepcopy':21}{'AveragedModel':21}{'pickle':8}memo with a clone")
expected = True
for name, tensor in layouts.items():
    model = nn.Module()
    model.register_buffer("edges", tensor)
    found = [outcome(copier, model) for copier in copiers.values()]
    print(f"{name:10}{found[0]:21}{found[1]:21}{found[2]:8}{found[3]}")
    failing = "ok" if name == "coo" else "NotImplementedError"
    expected &= found == [failing, failing, "ok", "ok"]
raise SystemExit(0 if expected else "the behaviour has changed")
PY
"$work/venv/bin/python" "$work/check.py"
