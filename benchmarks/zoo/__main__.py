"""The command line: `python -m benchmarks.zoo`."""

from benchmarks.zoo.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
