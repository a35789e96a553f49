"""The command line: `python -m benchmarks.latency`."""

from benchmarks.latency.measure import main

if __name__ == "__main__":
    main()
