"""The command line: parses, dispatches, and turns errors into messages and exit codes. Commands
that load plugins or tasks run in a process of their own, so that a crash is reported.

Each command imports what it needs when it runs: ``modbench --help`` loads no torch.
"""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from modbench import __version__
from modbench.cli.messages import Messages, tell
from modbench.errors import UserError, known_names

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
            from modbench.cli.flops import gate

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
    # Numbers of GPUs as nvidia-smi has them; CUDA's own order begins with the fastest.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
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


#: Description of each command, in the order of the help.
COMMANDS = {
    "check": "Try a new router in under a minute: FLOPs, audit and 20 training steps.",
    "run": "Train and measure what has no record yet of a suite; write its table and plots.",
    "time": "Measure time and memory of a suite's schemes, without training.",
    "report": "Write tables and plots from the records again.",
    "compare": "Compare two suites' results, rows or runs.",
    "verify": "Train recorded runs again, and say which metrics come out equal.",
    "submit": "Write a row of your own as a submission to a board.",
    "check-submission": "Check a submission to a board: its records, code and claim.",
    "list": "Name the routers, the shipped suites and the metrics.",
    "data": "Fetch, check and tokenize a corpus into the cache.",
    "flops": "Print the FLOPs of a model: total, per token, by component.",
    "plan": "Print a suite's runs, FLOPs, tokens and costs, or shapes of equal FLOPs.",
    "audit": "Test a router before it is trained: causality, decode parity, FLOPs and more.",
    "new-router": "Write a package with a router of your own, its tests and a workflow.",
    "eval": "Score a trained model on tasks of lm-eval or modbench's own.",
    "sample": "Print how the model of a trained run continues a prompt.",
    "traces": "Write the routing of a run, token by token, as Parquet.",
    "export": "Write the model and the tokenizer of a trained run into a folder.",
    "convert": "Convert a trained model of Hugging Face transformers to a routed one.",
    "doctor": "Say what works on this machine, what does not, and what to do about it.",
    "docs": "Print a page of the documentation.",
}


def function_of(command: str) -> Callable[..., int]:
    """The function of ``command``, which its module is imported for. Raises UserError: no such one."""
    if command not in COMMANDS:
        raise UserError(f"there is no command '{command}'; {known_names(command, COMMANDS)}")
    name = command.replace("-", "_")
    module = import_module(f"modbench.cli.{name}")
    # With an underscore where Python has the word itself.
    function: Callable[..., int] = getattr(module, name if hasattr(module, name) else f"{name}_")
    return function


def overview() -> str:
    """The text of `modbench --help`."""
    return "\n".join(
        [
            "usage: modbench COMMAND [...]",
            "",
            "Compares routing schemes for language models at equal compute.",
            "",
            *(f"  {command:<16}  {sentence}" for command, sentence in COMMANDS.items()),
            "",
            "Options and an example of a command: modbench COMMAND --help",
            "Pages of the documentation: modbench docs. The version: modbench --version.",
        ]
    )


def run() -> int:
    """Run the command of `sys.argv`; see `modbench.cli.main.main`."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = Messages(
            sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
    return main(sys.argv[1:])
