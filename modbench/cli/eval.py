"""The command `modbench eval`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from modbench.cli.messages import tell
from modbench.cli.options import Allow, Count, Plugins, Results, Run, Several, flat, names_of
from modbench.errors import UserError, several
from modbench.evaluate.tasks import TASKS
from modbench.evaluate.tasks.names import check_names

Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]


def eval_(
    run: Run,
    /,
    *,
    tasks: Annotated[
        Several[str], arg(metavar="NAME[,NAME...] ...", help_behavior_hint="(required)")
    ] = (),
    limit: Count = None,
    batch_size: Annotated[str, arg(metavar="N|auto")] = "auto",
    num_fewshot: Count = None,
    data_dir: Folder = None,
    include_path: Folder = None,
    rule: Literal["causal", "topk"] = "causal",
    out: Folder = None,
    validity: bool = True,
    device: str = "cpu",
    results: Results = Path("my-results"),
    plugin: Plugins = (),
    allow: Allow = (),
) -> int:
    """Score a trained model on tasks of lm-eval, modbench's own (`modbench_cloze` and others) or any
    other by its name.

    Example: modbench eval quick/mod --tasks lambada_openai,modbench_cloze --limit 200

    Args:
        run: a trained run, SUITE/LABEL@BUDGET#SEED such as quick/mod@1e11#0 (parts after the
            label may be left out; of several seeds the first is taken); a folder of weights; or a
            model folder of Hugging Face transformers
        tasks: names of tasks, groups or tags
        limit: number of items of each task; by default all
        batch_size: sequences per forward pass; auto: as many as fit 8192 tokens, or 2048 on a CPU
        num_fewshot: examples before each item; by default as the task says
        data_dir: folder of local files, in place of the hub; a file there is also a task of its own
            (modbench docs evaluation)
        include_path: folder of your own YAML files of lm-eval tasks; their Python is run
        rule: selection rule; topk is the training rule, which looks ahead: its scores are non-causal
        out: folder for lm-eval's result and sample files
        validity: also score the first 32 items at batch sizes 1, 7 and 32, and print how far they differ
        device: device of the model, such as cuda
        results: folder that holds one folder per suite
        plugin: Python files that register routers
        allow: text, tokenizer or data set of the run, which modbench's own tasks are made of
    """
    names = list(names_of(tasks))
    if not names:
        raise UserError("eval needs --tasks, such as --tasks lambada_openai,modbench_cloze")
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size) > 0):
        raise UserError(f"--batch-size is {batch_size}; it must be a number from 1, or auto")
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(
            f"--data-dir {data_dir} is no folder; give one with files such as arc_easy.jsonl"
        )
    check_names(names, include=include_path, data_dir=data_dir)
    from modbench.evaluate.downstream import evaluate
    from modbench.evaluate.downstream.files import ResultFiles
    from modbench.evaluate.downstream.table import as_table, details, missing_sentence, sentence
    from modbench.evaluate.downstream.validity import batch_shift
    from modbench.evaluate.loaded_lm import load_lm
    from modbench.evaluate.outside import outside, permit

    loaded = load_lm(
        run,
        results=results,
        plugins=flat(plugin),
        batch="auto" if batch_size == "auto" else int(batch_size),
        rule=rule,
        device=device,
    )
    if loaded.data is not None and (include_path or not TASKS.keys().isdisjoint(names)):
        permit(loaded.name, outside(loaded.data), flat(allow), tell)
    lm, done = loaded.lm, []
    if loaded.data is None and getattr(lm.model, "ledger", None) is None:
        tell(f"{loaded.name}: its FLOPs are not shown, since its family has no closed form")
    files = None if out is None else ResultFiles(out, loaded.name, lm, limit=limit)
    try:
        for evaluation in evaluate(
            lm,
            names,
            limit=limit,
            num_fewshot=num_fewshot,
            data_dir=data_dir,
            include=include_path,
            data=loaded.data,
        ):
            shift = batch_shift(lm, evaluation.tasks) if validity else None
            scores = details(evaluation, shift, loaded.leak)
            done.append(evaluation)
            if files is not None:
                files.add(evaluation, scores)
            tell(sentence(evaluation.name, scores))
            if missing := evaluation.missing:
                tell(missing_sentence(evaluation.name, missing, len(evaluation.tasks)))
            if num_fewshot and all(task.config.num_fewshot == 0 for task in evaluation.tasks.values()):
                tell(
                    f"{evaluation.name}: --num-fewshot {num_fewshot} is not used; "
                    "the task fixes its number of examples to 0"
                )
            if evaluation.truncated:
                tell(
                    f"{evaluation.name}: the context of {several(evaluation.truncated, 'request', ',')} "
                    f"was truncated on the left to the model's {lm.max_length:,} tokens"
                )
    finally:
        if done:
            print(as_table(done))
        if files is not None and done:
            tell(f"results in {files.path}")
    return 0
