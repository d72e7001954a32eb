"""The command `modbench sample`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from modbench.cli.options import Plugins, Results, Run, Several, flat
from modbench.errors import UserError, printable
from modbench.sweep.sample import Drawing


def sample(
    run: Run,
    /,
    *,
    prompt: Annotated[Several[str], arg(metavar="TEXT ...", help_behavior_hint="(required)")] = (),
    drawing: OmitArgPrefixes[Drawing],
    results: Results = Path("my-results"),
    plugin: Plugins = (),
) -> int:
    """Print how the model of a trained run continues a prompt.

    Example: modbench sample quick/mod --prompt "In the beginning" --temperature 0.8

    Args:
        run: a trained run, SUITE/LABEL@BUDGET#SEED such as quick/mod@1e11#0 (parts after the
            label may be left out; of several seeds the first is taken); or a folder of weights
        prompt: texts to continue
        drawing: how tokens are sampled
        results: folder that holds one folder per suite
        plugin: Python files that register routers
    """
    from modbench.sweep.sample import sample_run

    prompts = flat(prompt)
    if not prompts:
        raise UserError("sample needs --prompt, such as --prompt 'In the beginning'")
    for text in sample_run(run, prompts, results=results, plugins=flat(plugin), drawing=drawing):
        print(printable(text))
    return 0
