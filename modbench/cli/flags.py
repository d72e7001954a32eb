"""Flags that come twice on a command line. One that takes several values takes them all, whether they
stand behind one flag or each behind its own; one that takes a single value is refused the second time.

tyro by itself keeps what came last, without a word.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Annotated, Any, get_origin

from tyro.conf import UseAppendAction

from modbench.errors import UserError


def deferred(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """``function`` as tyro is to see it: its call is put off until tyro is done, whose business its
    errors aren't, and its options of several values may be given several times."""
    signature = inspect.signature(function)
    several = [name for name, one in signature.parameters.items() if _takes_several(one)]

    def call(*arguments: Any, **options: Any) -> int:
        for name in several:
            options[name] = tuple(chain.from_iterable(options[name]))
            if not options[name] and signature.parameters[name].default is inspect.Parameter.empty:
                verb = function.__name__
                raise UserError(f"{verb} needs --{name}, one or more; see `modbench {verb} --help`")
        return function(*arguments, **options)

    @functools.wraps(function)
    def later(*arguments: Any, **options: Any) -> Callable[[], int]:
        return functools.partial(call, *arguments, **options)

    changed = {name: _repeated(signature.parameters[name]) for name in several}
    parameters = [changed.get(name, one) for name, one in signature.parameters.items()]
    later.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    del later.__wrapped__  # type: ignore[attr-defined]  # tyro would look behind it
    later.__annotations__ = {one.name: one.annotation for one in parameters}
    return later


def refuse_twice(function: Callable[..., int], arguments: Sequence[str]) -> None:
    """
    Raises:
        UserError: ``arguments`` have a flag of a single value twice; it names both values.
    """
    parameters = inspect.signature(function).parameters
    seen = {name: "" for name, one in parameters.items() if _takes_several(one)}
    several = set(seen)
    for at, word in enumerate(arguments):
        # No value begins with two dashes, but behind an equals sign.
        if not word.startswith("--") or word == "--":
            continue
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        name = name.removeprefix("no_")  # on and off are one flag
        following = arguments[at + 1] if at + 1 < len(arguments) else "--"
        shown = value if equals else flag if following.startswith("--") else following
        if name in seen and name not in several:
            first, second = seen[name], shown
            raise UserError(
                f"--{name.replace('_', '-')} is given twice, as {first} and as {second}; give it once"
            )
        seen.setdefault(name, shown)


def _takes_several(parameter: inspect.Parameter) -> bool:
    hint = parameter.annotation
    plain = hint.__origin__ if get_origin(hint) is Annotated else hint
    return parameter.kind is parameter.KEYWORD_ONLY and get_origin(plain) is tuple


def _repeated(parameter: inspect.Parameter) -> inspect.Parameter:
    """It takes values as often as it comes."""
    hint = parameter.annotation
    group: Any = hint.__origin__
    return parameter.replace(
        annotation=Annotated[tuple[group, ...], *hint.__metadata__, UseAppendAction]
    )
