"""Converts many networks, each in a process of its own with a time limit, so that none can spoil another."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from benchmarks.zoo.convert import convert, source
from benchmarks.zoo.rows import CRASHED, LATE, Row


@dataclass(frozen=True, eq=False)
class _Conversion:
    """A conversion in a fork of this process, which has imported everything and has no threads."""

    set_name: str
    name: str
    process: BaseProcess
    answer: Connection
    limit: float
    deadline: float

    @classmethod
    def start(cls, set_name: str, name: str, limit: float) -> _Conversion:
        fork = multiprocessing.get_context("fork")
        answer, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_send_row, args=(sender, set_name, name), daemon=True)
        process.start()
        sender.close()
        return cls(set_name, name, process, answer, limit, time.monotonic() + limit)

    def finish(self) -> Row:
        """The row, or why there is none; ends the process."""
        named = {"source": source(), "set": self.set_name, "model": self.name}
        try:
            if not self.answer.poll():
                return {**named, "outcome": LATE, "error": f"took more than {self.limit:g} s"}
            return {**named, **self.answer.recv()}
        except EOFError:
            self.process.join()
            return {**named, "outcome": CRASHED, "error": f"the process ended with {self.process.exitcode}"}
        finally:
            self.process.kill()
            self.process.join()
            self.answer.close()


def _send_row(sender: Connection, set_name: str, name: str) -> None:
    """Runs in the fork, which prints nothing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.dup2(null, sys.stderr.fileno())
    row = convert(set_name, name)
    sender.send({**row, "seconds": time.process_time()})


def convert_all(
    networks: Sequence[tuple[str, str]], jobs: int, limit_seconds: float, total_seconds: float
) -> Iterator[Row]:
    """The rows of the networks (set, name) as they are ready.

    When the total time is over no new conversion starts, and those that are running have ended.
    """
    end = time.monotonic() + total_seconds
    waiting, running = list(networks)[::-1], list[_Conversion]()
    while True:
        while waiting and len(running) < jobs and time.monotonic() < end:
            limit = min(limit_seconds, end - time.monotonic())
            running.append(_Conversion.start(*waiting.pop(), limit))
        if not running:
            return
        patience = min(conversion.deadline for conversion in running) - time.monotonic()
        ready = wait([conversion.answer for conversion in running], max(0.0, patience))
        now = time.monotonic()
        for conversion in [c for c in running if c.answer in ready or c.deadline <= now]:
            running.remove(conversion)
            row = conversion.finish()
            if row["outcome"] == LATE and conversion.limit < limit_seconds:
                continue  # the total time is over, not the time of this network
            yield row
