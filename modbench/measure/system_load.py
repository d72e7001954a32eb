"""How busy a processor is with other people's work while something is timed, and how fast it runs."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STAT, _INFO, _PROCESSES = Path("/proc/stat"), Path("/proc/cpuinfo"), Path("/proc")
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: A machine is overloaded if more than its cores and this share of them are asked for.
SLACK = 0.1


def usable_cores() -> set[int] | None:
    """The cores that this process may use; None where the system doesn't tell."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def core_count() -> int:
    return len(usable_cores() or ()) or os.cpu_count() or 1


def thread_count() -> int:
    """So many threads have a core each, also where a container may use less time than its cores have."""
    allowed = quota()
    return core_count() if allowed is None else max(1, min(core_count(), int(allowed)))


def quota() -> float | None:
    """Cores' worth of processor time that control groups (Linux; version 1 or 2) leave to this process;
    None where they set no limit."""
    found = []
    for group in _own_groups():
        words = _words(group / "cpu.max") or (
            _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        )
        if len(words) == 2 and words[0] not in ("max", "-1"):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def _own_groups() -> Iterator[Path]:
    """The folders of the groups that this process is in, and of those around them. In a container that
    sees no other group its own is the root."""
    if not _OWN_GROUPS.exists():
        return
    for line in _OWN_GROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _GROUPS / "cpu" if controllers else _GROUPS
        inner = root / path.lstrip("/")
        yield from (group for group in (inner, *inner.parents) if group.is_relative_to(root))


def _words(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text().split())
    except OSError:  # no limit is kept there
        return ()


class Busy:
    """Looks at the machine from its construction on."""

    def __init__(self) -> None:
        self.load_before = round(os.getloadavg()[0], 2)
        self.mhz_before = processor_mhz()
        self._all, self._own, self._since = _busy_seconds(), _own_seconds(), time.monotonic()

    def state(self, threads: int, *, all_at_work: bool = True) -> dict[str, Any]:
        """Up to now: load averages and clock before and after, and ``others``, the cores that other
        processes kept busy, those that this one started aside (null where the system doesn't tell).
        ``overloaded``: this process's ``threads`` (unless ``all_at_work``, what they did) and the others
        were more than the cores, or the load average was when it began, or the threads were more than
        its `quota`."""
        span, everyone = time.monotonic() - self._since, _busy_seconds()
        others, own = None, float(threads)
        if everyone is not None and self._all is not None and span > 0:
            spent = _own_seconds() - self._own
            others = round(max(0.0, everyone - self._all - spent) / span, 2)
            own = threads if all_at_work else min(threads, spent / span)
        cores, allowed = core_count(), quota()
        most = cores * (1 + SLACK)
        throttled = allowed is not None and threads > allowed * (1 + SLACK)
        return {
            "cores": cores,
            "threads": threads,
            "load_before": self.load_before,
            "load_after": round(os.getloadavg()[0], 2),
            "mhz_before": self.mhz_before,
            "mhz_after": processor_mhz(),
            "others": others,
            "overloaded": throttled or self.load_before > most or (others or 0.0) + own > most,
        }


def _busy_seconds() -> float | None:
    """Seconds that the usable cores have spent on anything since the machine started."""
    cores = usable_cores()
    if cores is None or not _STAT.exists():
        return None
    ticks = 0
    for line in _STAT.read_text().splitlines():
        match = re.match(r"cpu(\d+) (.+)", line)
        if match and int(match[1]) in cores:
            user, nice, system, _, _, irq, soft_irq, steal = map(int, match[2].split()[:8])
            ticks += user + nice + system + irq + soft_irq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Processor time of this process and of all that it started and that they did, such as compilers."""
    ticks, parents = {}, {}
    for file in _PROCESSES.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # Behind the name, which may hold any bytes: state, parent, ..., times of its own and of the
            # children that it has waited for.
            words = file.read_bytes().rpartition(b")")[2].split()
            process = int(file.parent.name)
            parents[process], ticks[process] = int(words[1]), sum(map(int, words[11:15]))
    mine, found = {os.getpid()}, {os.getpid()}
    while found:
        found = {process for process, parent in parents.items() if parent in found}
        mine |= found
    if os.getpid() not in ticks:  # not Linux
        return time.process_time()
    return sum(ticks.get(process, 0) for process in mine) / os.sysconf("SC_CLK_TCK")


def processor_mhz() -> float | None:
    """The mean clock of the cores, where the system tells."""
    if not _INFO.exists():
        return None
    found = re.findall(r"^cpu MHz\s*: ([\d.]+)$", _INFO.read_text(), flags=re.MULTILINE)
    return round(sum(map(float, found)) / len(found), 1) if found else None
