"""Measurements and trials of the package; each runs as `python -m benchmarks.NAME` from the repository root.

    latency      how long folded networks take, beside everything else that could be deployed
    conversion   what a conversion costs in time and memory
    calibrate    fits the constants of the static cost to a machine
    zoo          converts public networks and says what became of each
    fuzz         converts random networks and compares them with themselves

All of them take --quick, which ends within a minute. `common` holds what they share.
"""
