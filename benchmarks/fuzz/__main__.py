"""The command line: `python -m benchmarks.fuzz`."""

from benchmarks.fuzz.check import main

if __name__ == "__main__":
    main()
