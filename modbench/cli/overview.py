"""The commands, and what `modbench --help` says of them. Imports none of them."""

from collections.abc import Callable
from importlib import import_module

from modbench.errors import UserError, known_names

#: What each command does, in the order of the help.
COMMANDS = {
    "check": "Try a new router in under a minute: FLOPs, audit and 20 training steps.",
    "run": "Train and measure what has no record yet of a suite; write its table and plots.",
    "time": "Measure time and memory of a suite's schemes, without training.",
    "report": "Write tables and plots from the records again.",
    "compare": "Compare two suites' results, rows or runs.",
    "verify": "Train recorded runs again, and say which metrics come out equal.",
    "merge": "Add the records of other machines to a results folder.",
    "list": "Name the routers, the shipped suites and the metrics.",
    "data": "Fetch, check and tokenize a corpus into the cache.",
    "flops": "Print the FLOPs of a model: total, per token, by component.",
    "plan": "Print what a suite will take on this machine: runs, FLOPs, tokens, time.",
    "fit": "Fit isoFLOP curves of your own points.",
    "audit": "Test a router before it is trained: causality, decode parity, FLOPs and more.",
    "new-router": "Write a package with a router of your own, its tests and a workflow.",
    "eval": "Score a trained model on tasks of lm-eval or modbench's own.",
    "sample": "Print how the model of a trained run continues a prompt.",
    "export": "Write the model and the tokenizer of a trained run into a folder.",
    "convert": "Convert a trained model of Hugging Face transformers to a routed one.",
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
            *(f"  {command:<10}  {sentence}" for command, sentence in COMMANDS.items()),
            "",
            "Options and an example of a command: modbench COMMAND --help",
            "Pages of the documentation: modbench docs. The version: modbench --version.",
        ]
    )
