"""How busy a processor is with other people's work while something is timed, and how fast it runs."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STAT, _INFO = Path("/proc/stat"), Path("/proc/cpuinfo")
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
        self._all, self._own, self._since = _busy_seconds(), time.process_time(), time.monotonic()

    def state(self, threads: int) -> dict[str, Any]:
        """Up to now: load averages and clock before and after, and ``others``, the cores that other
        processes kept busy (null where the system doesn't tell). ``overloaded``: this process's
        ``threads`` and the others were more than the cores, or the load average was when it began, or
        the threads were more than its `quota`."""
        span, everyone = time.monotonic() - self._since, _busy_seconds()
        others = None
        if everyone is not None and self._all is not None and span > 0:
            own = time.process_time() - self._own
            others = round(max(0.0, everyone - self._all - own) / span, 2)
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
            "overloaded": throttled or self.load_before > most or (others or 0.0) + threads > most,
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


def processor_mhz() -> float | None:
    """The mean clock of the cores, where the system tells."""
    if not _INFO.exists():
        return None
    found = re.findall(r"^cpu MHz\s*: ([\d.]+)$", _INFO.read_text(), flags=re.MULTILINE)
    return round(sum(map(float, found)) / len(found), 1) if found else None
