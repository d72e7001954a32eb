"""The command line: parses, dispatches, and turns errors into messages and exit codes.

Each command imports what it needs when it runs: ``modbench --help`` loads no torch.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence

from modbench import __version__
from modbench.cli.messages import tell
from modbench.cli.overview import COMMANDS as COMMANDS
from modbench.cli.overview import function_of, overview
from modbench.errors import UserError

#: Errors of a full disk, an exhausted quota or missing permissions.
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case ["--version"]:
            print(f"modbench {__version__}")
            return 0
        case [] | ["--help" | "-h", *_]:
            print(overview())
            return 0 if arguments else 2
    import tyro  # takes most of the time of `modbench --help`

    match arguments:
        case ["flops", "gate", *rest]:
            from modbench.cli.gate import gate

            function, name = gate, "flops gate"
        case [name, *rest]:
            function = function_of(name)
    return tyro.cli(function, args=rest, prog=f"modbench {name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 if a run or a check failed, 2 for a user's mistake,
    130 if stopped. Command lines that tyro rejects, and ``--help``, raise `SystemExit`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a sampled character
    try:
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
