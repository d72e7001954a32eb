"""A Slurm of one node for tests: munged, slurmctld and slurmd of this machine's packages, or of Debian's
packages unpacked into the folder MODBENCH_SLURM, without systemd."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")
_UNPACKED = os.environ.get("MODBENCH_SLURM")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"

CONFIGURATION = """
ClusterName=modbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdTimeout=20
MpiDefault=none
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
{plugins}
"""


def binary(name: str) -> Path | None:
    """The file of the daemon ``name``; None: it is missing."""
    if _UNPACKED is None:
        path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        return Path(path) if path else None
    files = [Path(_UNPACKED, "usr", "sbin", each) for each in (f"{name}-wlm", name)]
    return next((file for file in files if file.is_file()), None)


def missing() -> list[str]:
    return [name for name in DAEMONS if binary(name) is None]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class SlurmCluster:
    """Runs while it is a context; its files are in ``folder``. ``environment``: of its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        if _UNPACKED:
            root = Path(_UNPACKED)
            libraries = [root / _LIBRARIES, root / _LIBRARIES / "slurm-wlm"]
            self.environment["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
            self.environment["PATH"] = os.pathsep.join([str(root / "usr/bin"), os.environ["PATH"]])
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "SlurmCluster":
        folder = self.folder
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir(parents=True)
        for name in DAEMONS:  # they must keep their names
            (folder / "bin" / name).symlink_to(binary(name) or "")
        (folder / "munge.key").write_bytes(os.urandom(64))
        (folder / "munge.key").chmod(0o600)
        plugins = f"PluginDir={_UNPACKED}/{_LIBRARIES}/slurm-wlm" if _UNPACKED else ""
        text = CONFIGURATION.format(
            host=self.host,
            port=free_port(),
            node_port=free_port(),
            user=psutil.Process().username(),
            folder=folder,
            plugins=plugins,
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("Name=gpu Count=1 File=/dev/null\n")
        files = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munge.seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._start("munged", "--foreground", "--force", *options)
        self._wait(lambda: (folder / "munge.sock").exists())
        self._start("slurmctld", "-D", "-c")
        self.start_node()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill_node()
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()

    def start_node(self) -> None:
        self._start("slurmd", "-D", "-N", self.host, "-d", str(self.folder / "bin" / "slurmstepd"))
        self._wait(lambda: self.says("sinfo", "--noheader", "--format=%T").strip() in ("idle", "mixed"))

    def kill_node(self) -> None:
        """SIGKILL the node's daemon and all that runs on it, as when its power fails."""
        daemon = self._daemons.pop("slurmd")
        for process in self.on_node():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        daemon.kill()
        daemon.wait()

    def on_node(self) -> list[psutil.Process]:
        """The processes of tasks, and those that started them."""
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                variables = process.environ()
                ours = variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if ours and ("SLURM_JOB_ID" in variables or process.name() == "slurmstepd"):
                    processes.append(process)
        return processes

    def says(self, *command: str) -> str:
        """The output of a command of Slurm; empty if it fails."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    def queue(self) -> dict[str, str]:
        """The states of tasks by name, such as 7_0."""
        listed = self.says("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in listed)

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                [str(self.folder / "bin" / name), *words],
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _wait(self, ready: object) -> None:
        deadline = time.monotonic() + 90
        while not ready():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"Slurm is not up; its logs: {self.folder}"
            time.sleep(0.2)
