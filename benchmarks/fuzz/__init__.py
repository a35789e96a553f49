"""Random networks, converted and compared with themselves.

    python -m benchmarks.fuzz --nets 2000 --seed 1

`draw` makes the network of a seed: `writer` writes it line by line, with the operations of `layers`, `structure` and
`spellings`. `check` converts it and compares. `shrink` makes a network that fails small and prints it as a program.
`naive_padding` tests that folds which the padding law refuses would be wrong. `run` counts the outcomes of many seeds.
A conversion that leaves folds for a second one is counted, but is no failure.
"""
