"""The command `modbench eval`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from modbench.cli.messages import tell
from modbench.cli.options import Allow, Count, Run, Several, Trained, flat, names_of
from modbench.errors import UserError, several
from modbench.evaluate.tasks import TASKS
from modbench.evaluate.tasks.names import check_names

if TYPE_CHECKING:
    from modbench.evaluate.downstream import Evaluation
    from modbench.evaluate.loaded_lm import LoadedLM

Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Options of scoring."""

    limit: Count = None  #: number of items of each task; by default all
    #: sequences per forward pass; auto: as many as fit 8192 tokens, or 2048 on a CPU
    batch_size: Annotated[str, arg(metavar="N|auto")] = "auto"
    num_fewshot: Count = None  #: examples before each item; by default as the task says
    #: folder of your own YAML files of lm-eval tasks, which may read local files (modbench docs
    #: evaluation); their Python is run
    include_path: Folder = None
    #: selection rule; topk is the training rule, which looks ahead: its scores are non-causal
    rule: Literal["causal", "topk"] = "causal"
    #: also score the first 32 items at batch sizes 1, 7 and 32, and print how far they differ
    validity: bool = True
    device: str = "cpu"  #: device of the model, such as cuda

    def batch_for(self, tasks: Sequence[str]) -> int | Literal["auto"]:
        """The sequences per pass. Raises UserError: an option is out of range, or a task is unknown."""
        if not tasks:
            raise UserError("eval needs --tasks, such as --tasks lambada_openai,modbench_cloze")
        check_names(tasks, self.include_path)
        if self.batch_size == "auto":
            return "auto"
        if not (self.batch_size.isdecimal() and int(self.batch_size) > 0):
            raise UserError(f"--batch-size is {self.batch_size}; it must be a number from 1, or auto")
        return int(self.batch_size)


def eval_(
    run: Run,
    /,
    *,
    tasks: Annotated[
        Several[str], arg(metavar="NAME[,NAME...] ...", help_behavior_hint="(required)")
    ] = (),
    out: Folder = None,
    scoring: OmitArgPrefixes[ScoringOptions],
    common: OmitArgPrefixes[Trained],
    allow: Allow = (),
) -> int:
    """Score a trained model on tasks of lm-eval, modbench's own (`modbench_cloze` and others) or any
    other by its name.

    Example: modbench eval quick/mod --tasks lambada_openai,modbench_cloze --limit 200

    Args:
        run: a trained run, SUITE/LABEL@BUDGET#SEED such as quick/mod@1e12#0 (parts after the
            label may be left out; of several seeds the first is taken); a folder of weights; or a
            model folder of Hugging Face transformers
        tasks: names of tasks, groups or tags
        out: folder for lm-eval's result and sample files
        scoring: options of scoring
        common: folder of trained runs, and their plugins
        allow: text, tokenizer or data set of the run, which modbench's own tasks are made of
    """
    names = list(names_of(tasks))
    batch = scoring.batch_for(names)
    from modbench.evaluate.downstream import evaluate
    from modbench.evaluate.downstream.files import ResultFiles
    from modbench.evaluate.downstream.table import as_table, details
    from modbench.evaluate.downstream.validity import batch_shift

    loaded, done = _loaded(run, names, batch, scoring, common, flat(allow)), []
    lm = loaded.lm
    files = None if out is None else ResultFiles(out, loaded.name, lm, limit=scoring.limit)
    try:
        for evaluation in evaluate(
            lm,
            names,
            limit=scoring.limit,
            num_fewshot=scoring.num_fewshot,
            include=scoring.include_path,
            data=loaded.data,
        ):
            shift = batch_shift(lm, evaluation.tasks) if scoring.validity else None
            scores = details(evaluation, shift, loaded.leak)
            done.append(evaluation)
            if files is not None:
                files.add(evaluation, scores)
            _tell_of(evaluation, scores, scoring.num_fewshot, lm.max_length)
    finally:
        if done:
            print(as_table(done))
        if files is not None and done:
            tell(f"results in {files.path}")
    return 0


def _loaded(
    run: str,
    names: Sequence[str],
    batch: int | Literal["auto"],
    scoring: ScoringOptions,
    common: Trained,
    allowed: Sequence[str],
) -> "LoadedLM":
    """Load ``run``. Raises UserError: as `load_lm`; or the tasks ``names`` need a text or tokenizer that
    is not ``allowed``."""
    from modbench.evaluate.loaded_lm import load_lm
    from modbench.evaluate.outside import outside, permit

    loaded = load_lm(
        run,
        results=common.results,
        plugins=common.plugins,
        batch=batch,
        rule=scoring.rule,
        device=scoring.device,
    )
    if loaded.data is not None and (scoring.include_path or not TASKS.keys().isdisjoint(names)):
        permit(loaded.name, outside(loaded.data), allowed, tell)
    if loaded.data is None and loaded.lm.ledger is None:
        tell(f"{loaded.name}: its FLOPs are not shown, since its family has no closed form")
    return loaded


def _tell_of(
    evaluation: "Evaluation", scores: dict[str, Any], num_fewshot: int | None, longest: int
) -> None:
    """Tell the ``scores`` of a task, and which requests were not scored as asked."""
    from modbench.evaluate.downstream.table import sentence

    name, tasks = evaluation.name, evaluation.tasks
    tell(sentence(name, scores))
    if num_fewshot and all(task.config.num_fewshot == 0 for task in tasks.values()):
        tell(
            f"{name}: --num-fewshot {num_fewshot} is not used; the task fixes its number of examples "
            "to 0"
        )
    for warning, times in evaluation.warnings.items():
        tell(f"{name}: lm-eval warns: {warning}" + (f" ({times:,} times)" if times > 1 else ""))
    if evaluation.truncated:
        tell(
            f"{name}: the context of {several(evaluation.truncated, 'request', ',')} was truncated on "
            f"the left to the model's {longest:,} tokens"
        )
