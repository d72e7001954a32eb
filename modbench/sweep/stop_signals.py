"""The signals by which somebody asks a command to stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(heard: Callable[[int], object]) -> Iterator[None]:
    """Call ``heard`` with each one that arrives: Ctrl-C, a request to end, a terminal that closes."""
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup
        before[number] = signal.signal(number, lambda number, frame: heard(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
