"""Scripts that measure and try the package: run them from the repository root, as `python -m benchmarks.NAME`."""
