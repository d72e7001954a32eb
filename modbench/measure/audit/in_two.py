"""Runs about half of the probes of an audit, which is single-threaded, in a second process."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from modbench.measure.audit import PROBES, Finding

#: Probes of the second process: about half of the time of most routers.
SECOND = frozenset({3, 9, 10})
#: Yields the findings of the probes with these numbers, in order.
Run = Callable[[Collection[int]], Iterator[Finding]]


def in_two(run: Run) -> Iterator[Finding]:
    """Yield the findings of all probes in order. A probe that ends its process is run again in this one,
    so that its error is raised here."""
    numbers = {probe.number for probe in PROBES}
    if not _can_fork():
        yield from run(numbers)
        return
    fork = multiprocessing.get_context("fork")  # type: ignore[attr-defined]
    receiver, sender = fork.Pipe(duplex=False)
    second = fork.Process(target=_send, args=(run, sender), daemon=True)
    second.start()
    sender.close()
    own = iter(run(numbers - SECOND))
    try:
        for number in sorted(numbers):
            if number not in SECOND:
                yield next(own)
                continue
            try:
                yield receiver.recv()
            except EOFError:
                yield from run({number})
    finally:
        second.kill()
        second.join()


def _send(run: Run, sender: Any) -> None:
    try:
        for finding in run(SECOND):
            sender.send(finding)
    except BaseException:  # the first process runs the probe again
        os._exit(1)


def _can_fork() -> bool:
    """Return True where a copy of this process works: on Linux, without other threads."""
    alone = sys.platform == "linux" and threading.active_count() == 1
    return alone and len(os.sched_getaffinity(0)) > 1
