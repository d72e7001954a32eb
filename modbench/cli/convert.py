"""The command `modbench convert`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from modbench.cli.messages import tell
from modbench.cli.options import Amount, Plugins, RouterOptions, flat, parsed_options


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training of the converted model."""

    budget: Annotated[float, arg(metavar="FLOPS")]  #: training FLOPs, counted step by step
    #: router: parameters of routers alone; all: all of them
    train: Literal["router", "all"] = "all"
    #: fraction of the budget in which the capacity falls from all tokens to its value
    anneal: float = 0.5
    #: peak learning rate (default: 1e-4, or 1e-3 for routers alone)
    learning_rate: Amount = None
    batch: int = 8  #: sequences in a step
    sequence: int = 256  #: tokens of a sequence
    seed: int = 0  #: seed of routers and of the order of the text


def convert(
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")],
    /,
    *,
    router: Annotated[str, arg(metavar="NAME[:PRESET]")] = "mod",
    data: Annotated[str, arg(metavar="TEXT")],
    out: Annotated[Path, arg(metavar="FOLDER")],
    option: RouterOptions = (),
    training: OmitArgPrefixes[TrainingOptions],
    device: str = "cpu",
    plugin: Plugins = (),
) -> int:
    """Convert a trained model of Hugging Face transformers to a routed one, and train it within a budget
    of FLOPs. Nothing is written unless all of it succeeds.

    Example: modbench convert my-llama --router mod --data my.txt --budget 1e12 --out my-mod

    Args:
        folder: folder with config.json, safetensors and a tokenizer, as save_pretrained writes it
        router: mod, threshold_skip or another depth router; token_choice or expert_choice for experts
            that start as copies of each MLP
        data: a .txt file, a .jsonl file with a document per line in "text", or pypi-en-v1, the built-in
            corpus
        out: folder to write; it must be new or empty
        option: options of the router
        training: training of the converted model
        device: device of PyTorch
        plugin: Python files that register routers
    """
    from modbench.hf.retrofit.convert import Conversion
    from modbench.hf.retrofit.convert import convert as run
    from modbench.routing.registry import load_plugin
    from modbench.trained.export import new_folder

    for file in flat(plugin):
        load_plugin(file)
    conversion = Conversion(router=router, options=parsed_options(option), **vars(training))

    def written(into: Path) -> str:
        return _sentence(run(folder, conversion, data, into, device=device, say=tell), out)

    tell(new_folder(out, written))
    print(out)
    return 0


def _sentence(result: Mapping[str, Any], out: Path) -> str:
    from modbench.hf.retrofit.convert import routed_in_words

    losses = ""
    if result["heldout_loss"] is not None:
        losses = (
            f"validation loss {result['heldout_loss_before']:.4f} before, {result['heldout_loss']:.4f} "
            f"after{routed_in_words(result['share_routed'])}; "
        )
    return (
        f"{result['steps']} steps, {result['flops']:.4g} FLOPs; {losses}largest difference of a logit "
        f"at step 0 {result['largest_logit_difference']:.1e}; after `import modbench.hf.retrofit`, load "
        f"it with transformers.AutoModelForCausalLM.from_pretrained('{out}')"
    )
