"""Public networks by the hundred, converted and compared with themselves.

    python -m benchmarks.zoo --set timm torchvision --out zoo.jsonl --minutes 60
    python -m benchmarks.zoo --out zoo.jsonl --table

`sets` names the networks and builds them with random weights, from `models`, `transformers` and `ultralytics`; nothing
is downloaded. `convert` makes the row of one network: folds, refusals, errors, what is left. `processes` converts each
network in a process of its own. `rows` adds a row to the file as soon as it is known; a network that has a row by the
same code is not converted again. `page` makes the page that people read.
"""
