"""The command line: parses, dispatches, and turns errors into messages and exit codes.

Each command imports what it needs when it runs: ``modbench --help`` loads no torch.
"""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence

import tyro

from modbench import __version__
from modbench.cli.audit import audit
from modbench.cli.check import check
from modbench.cli.compare import compare
from modbench.cli.data import data
from modbench.cli.docs import docs
from modbench.cli.eval import eval_
from modbench.cli.export import export
from modbench.cli.fit import fit
from modbench.cli.flops import flops
from modbench.cli.gate import gate
from modbench.cli.list import list_
from modbench.cli.merge import merge
from modbench.cli.options import tell
from modbench.cli.plan import plan
from modbench.cli.report import report
from modbench.cli.run import run
from modbench.cli.sample import sample
from modbench.cli.time import time
from modbench.cli.unset import REGISTRY
from modbench.cli.verify import verify
from modbench.errors import UserError

COMMANDS: dict[str, Callable[..., int]] = {
    command.__name__.rstrip("_"): command
    for command in (
        check,
        run,
        time,
        report,
        compare,
        verify,
        merge,
        list_,
        data,
        flops,
        plan,
        fit,
        audit,
        eval_,
        sample,
        export,
        docs,
    )
}
#: Errors of a full disk, an exhausted quota or missing permissions.
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case ["--version"]:
            print(f"modbench {__version__}")
            return 0
        case ["flops", "gate", *rest]:
            return tyro.cli(gate, args=rest, prog="modbench flops gate")
        case [name, *rest] if name in COMMANDS:
            return tyro.cli(COMMANDS[name], args=rest, prog=f"modbench {name}")
    about = "Compares routing schemes for language models at equal compute. "
    about += "`modbench --version` prints the version."
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS, args=arguments, prog="modbench", description=about
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 if a run or a check failed, 2 for a user's mistake,
    130 if stopped. Command lines that tyro rejects, and ``--help``, raise `SystemExit`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a sampled character
    try:
        with REGISTRY:
            code = _dispatch(arguments)
        print(end="", flush=True)
        return code
    except UserError as error:
        tell(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        resumes = arguments[0] in ("run", "time")
        tell("stopped" + ("; run the same command again to continue" if resumes else ""))
        return 130
    except BrokenPipeError:  # `modbench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        tell(f"{error.filename or 'the output'}: {error.strerror}")
        return 2
