"""How long a forward pass takes, beside everything else that a user could deploy, and how far it is from the truth.

    python -m benchmarks.latency --quick
    python -m benchmarks.latency --json latency.json               # adds what is missing in the file
    python -m benchmarks.latency --json latency.json --page docs   # writes docs/benchmarks.md, measures nothing

A case is a network of `models`, a batch and a memory format. `measure` runs each case in a process of its own. All
`forms` of the network take turns there, each round in another order. A ratio is formed within a round, so that other
load on the machine slows both sides. A form that cannot be made, or that computes something else than the original,
is not timed, and the reason is printed. `rounding` measures the errors in half precision. `page` writes the page.
"""
