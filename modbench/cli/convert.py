"""The command `modbench convert`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from modbench.cli.messages import tell
from modbench.cli.options import Amount, Plugins, RouterOptions, flat, parsed_options


def convert(
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")],
    /,
    *,
    router: Annotated[str, arg(metavar="NAME[:PRESET]")] = "mod",
    data: Annotated[str, arg(metavar="TEXT")],
    budget: Annotated[float, arg(metavar="FLOPS")],
    out: Annotated[Path, arg(metavar="FOLDER")],
    option: RouterOptions = (),
    train: Literal["router", "all"] = "all",
    anneal: float = 0.5,
    learning_rate: Amount = None,
    batch: int = 8,
    sequence: int = 256,
    seed: int = 0,
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
        budget: training FLOPs, counted step by step
        out: folder to write; it must be new or empty
        option: options of the router
        train: router: parameters of routers alone; all: all of them
        anneal: fraction of the budget in which the capacity falls from all tokens to its value
        learning_rate: peak learning rate (default: 1e-4, or 1e-3 for routers alone)
        batch: sequences in a step
        sequence: tokens of a sequence
        seed: seed of routers and of the order of the text
        device: device of PyTorch
        plugin: Python files that register routers
    """
    from modbench.hf.retrofit.convert import Conversion
    from modbench.hf.retrofit.convert import convert as run
    from modbench.routing.registry import load_plugin
    from modbench.trained.export import new_folder

    for file in flat(plugin):
        load_plugin(file)
    conversion = Conversion(
        router=router,
        options=parsed_options(option),
        budget=budget,
        train=train,
        anneal=anneal,
        learning_rate=learning_rate,
        batch=batch,
        sequence=sequence,
        seed=seed,
    )

    def written(into: Path) -> str:
        result = run(folder, conversion, data, into, device=device, say=tell)
        losses = ""
        if result["heldout_loss"] is not None:
            losses = (
                f"held-out loss {result['heldout_loss_before']:.4f} before, "
                f"{result['heldout_loss']:.4f} after; "
            )
        return (
            f"{result['steps']} steps, {result['flops']:.4g} FLOPs; {losses}largest difference of a "
            f"logit at step 0 {result['largest_logit_difference']:.1e}; after `import "
            "modbench.hf.retrofit`, load it with "
            f"transformers.AutoModelForCausalLM.from_pretrained('{out}')"
        )

    tell(new_folder(out, written))
    print(out)
    return 0
