"""Classes of retrofitted models: for each family of transformers a config with the model type
``modbench_FAMILY`` and a subclass of its causal language model, registered with transformers."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers import Cache as HubCache
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modbench.errors import UserError
from modbench.hf.cache import refuse_offloaded
from modbench.hf.config import PREFIX
from modbench.hf.retrofit.build import rebuild
from modbench.hf.retrofit.layer import CONTEXT, PASS, Made, Pass
from modbench.hf.retrofit.refuse import check_attention
from modbench.ledger import OUTSIDE
from modbench.model.trace import Trace


class RetrofittedModel:
    """The part of a retrofitted model's class that comes before the class of its family."""

    #: Reports of the routers on the last forward pass.
    routing: Trace
    #: Route evenly, whatever the scores, so that an untrained model can be timed.
    forced_balance = False

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the reports, whose tensors belong to a backward pass and can't be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "routing"}

    def _modbench_forward(self, forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        context = arguments.pop(CONTEXT, None)
        if context is not None:  # of a row of a suite, whose adapter has checked the arguments
            current = Pass.of(context, arguments["input_ids"], check_attention(self))
            return forward(self, **arguments, **{PASS: current})
        training = self.training  # type: ignore[attr-defined]
        cache = next((value for value in arguments.values() if isinstance(value, HubCache)), None)
        if cache is not None:
            refuse_offloaded(cache)
        _refuse_packed(arguments, type(self).__name__)
        ids_BT = arguments.get("input_ids")
        shown = ids_BT if ids_BT is not None else arguments.get("inputs_embeds")
        if shown is None:
            raise UserError(f"{type(self).__name__} was given no input_ids; give token ids (B, T)")
        current = Pass(
            selection="topk" if training and cache is None else "causal",
            attention=check_attention(self),
            ids_BT=ids_BT,
            forced_balance=self.forced_balance,
            real_BT=_real(arguments.get("attention_mask"), shown.shape[1], type(self).__name__),
        )
        self._ask_for_router_logits(arguments, current)
        if current.selection == "topk":
            arguments["use_cache"] = False  # what training selects is not what decoding continues
        as_dict = arguments.pop("return_dict", None)
        outputs = forward(self, **arguments, **{PASS: current}, return_dict=True)
        if training and outputs.get("loss") is not None:
            self._add_auxiliary_losses(outputs, current.trace, arguments)
        self.routing = current.trace
        return outputs.to_tuple() if as_dict is False else outputs

    def _add_auxiliary_losses(self, outputs: Any, trace: Trace, arguments: dict[str, Any]) -> None:
        """Add the losses of ``trace``, and transformers' own balance loss to ``trace``. Where the
        cross-entropy is divided by ``num_items_in_batch``, the predicted tokens of all micro-batches of
        a step, the losses are multiplied by this micro-batch's fraction of them."""
        loss, items = outputs["loss"], arguments.get("num_items_in_batch")
        if outputs.get("aux_loss") is not None:
            own: Any = self
            coefficient = (
                own.aux_loss_coef if hasattr(self, "aux_loss_coef") else own.router_aux_loss_coef
            )
            balance = coefficient * outputs["aux_loss"].to(loss.device)
            trace.loss(OUTSIDE, "balance", balance)
            loss = loss - balance
        auxiliary = trace.auxiliary_loss()
        if not isinstance(auxiliary, Tensor):
            return
        auxiliary = auxiliary.to(loss.device, loss.dtype)
        if items is not None:
            predicted = (arguments["labels"][..., 1:] != -100).sum()
            auxiliary = auxiliary * (predicted.to(loss.device) / items)
        outputs["loss"] = loss + auxiliary

    def _ask_for_router_logits(self, arguments: dict[str, Any], current: Pass) -> None:
        """Have transformers take the balance loss of its experts over the tokens that each layer
        processes, where there is a loss. Raise a `UserError` for padding, which it would tell apart by a
        mask of all tokens."""
        key = "output_router_logits"
        configured = getattr(self.config, key, None)  # type: ignore[attr-defined]
        if configured is None:
            return
        if arguments.get(key) is None:
            arguments[key] = configured and arguments.get("labels") is not None
        if not arguments[key] or arguments.get("attention_mask") is None:
            return
        if current.real_BT is not None:
            raise UserError(
                f"{type(self).__name__}: {key} asks for a balance loss over all tokens but padding, "
                "which routed layers don't process; set it to False in the config, or give "
                "sequences without padding"
            )
        arguments["attention_mask"] = None

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **named: Any
    ) -> None:
        """Raise a `UserError` for reentrant checkpointing, which cuts auxiliary losses off."""
        if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise UserError(
                f"{type(self).__name__}: reentrant checkpointing gives the losses of routers no "
                "gradient; set use_reentrant to False"
            )
        super().gradient_checkpointing_enable(  # type: ignore[misc]
            gradient_checkpointing_kwargs=gradient_checkpointing_kwargs, **named
        )

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """Raise a `UserError` for assisted decoding and static caches, before anything is generated."""
        given = named.get("generation_config")
        asked = {**(given.to_dict() if given is not None else {}), **named}
        name = type(self).__name__
        for option in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
            if asked.get(option) is not None:
                raise UserError(
                    f"{name}: {option} asks for assisted decoding, which takes tokens back from the "
                    "cache, and a routed layer can't; leave it out"
                )
        kind = asked.get("cache_implementation")
        if kind not in (None, "dynamic", "dynamic_full"):
            raise UserError(
                f"{name}: cache_implementation '{kind}' has no room for the tokens of a routed layer, "
                "whose number is not known beforehand; leave it out for a DynamicCache"
            )
        return super().generate(*arguments, **named)  # type: ignore[misc]


def _refuse_packed(arguments: dict[str, Any], name: str) -> None:
    """Raise a `UserError` for several texts in one sequence, which transformers tells apart by positions
    that start again, or by their lengths."""
    positions_BT = arguments.get("position_ids")
    packed = any(arguments.get(key) is not None for key in ("cu_seq_lens_q", "seq_idx"))
    if isinstance(positions_BT, Tensor) and arguments.get("attention_mask") is None:
        packed |= bool((positions_BT.diff(dim=-1) < 0).any())
    if packed:
        raise UserError(
            f"{name}: several texts are packed into a sequence, and a routed layer would let them "
            "attend to each other; give each text a row, with an attention_mask"
        )


def _real(mask: Any, tokens: int, name: str) -> Tensor | None:
    """Return which of the ``tokens`` new tokens are not padding, (B, T) bool; None: all."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        what = f"of {mask.dim()} dimensions" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise UserError(
            f"{name}: attention_mask is {what}, made for all tokens and not for selected ones; give the "
            "padding mask (B, T)"
        )
    return mask[:, -tokens:].to(torch.bool)


def model_class(kind: type) -> type:
    """Return the retrofitted subclass of ``kind``, a causal language model of transformers, registered
    with `AutoConfig` and `AutoModelForCausalLM`."""
    return _classes(kind.config_class.model_type)[1]  # type: ignore[attr-defined]


@functools.cache
def _classes(family: str) -> tuple[type[PreTrainedConfig], type]:
    """Return config and model class of ``family``, registered."""
    import transformers

    base_config = CONFIG_MAPPING[family]
    base: Any = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    made: dict[str, Any] = {"__module__": __name__, "modbench_made_by": _made_again}
    config: Any = Made(
        f"Retrofitted{base_config.__name__}",
        (base_config,),
        {**made, "model_type": f"{PREFIX}{family}"},
    )
    plain = base.forward
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        bound = signature.bind(self, *arguments, **named).arguments
        bound.pop("self")
        further = bound.pop("kwargs", {})
        return self._modbench_forward(plain, {**bound, **further})

    def construct(self: Any, config: Any, *arguments: Any, **named: Any) -> None:
        base.__init__(self, config, *arguments, **named)
        rebuild(self)

    split = {*(base._no_split_modules or [])}
    model = Made(
        f"Retrofitted{base.__name__}",
        (RetrofittedModel, base),
        {
            **made,
            "config_class": config,
            "forward": forward,
            "__init__": construct,
            "_no_split_modules": sorted(split | {f"Routed{name}" for name in split}),
        },
    )
    # As the family's checkpoints are converted, such as one tensor for each expert to one for all.
    for theirs, own in ((family, config.model_type), (base.__name__, model.__name__)):
        conversions = get_checkpoint_conversion_mapping(theirs)
        if conversions is not None:
            register_checkpoint_conversion_mapping(own, conversions, overwrite=True)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    return config, model


def _made_again(*bases: Any) -> type:
    """Return the config or model class that was made from ``bases``."""
    return model_class(bases[-1]) if len(bases) > 1 else _classes(bases[0].model_type)[0]


class _Family:
    """Stands for the config of a family, whose modules take time to import, until a model is loaded."""

    def __init__(self, family: str) -> None:
        self.family = family

    def from_dict(self, *arguments: Any, **named: Any) -> Any:
        return _classes(self.family)[0].from_dict(*arguments, **named)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return _classes(self.family)[0](*arguments, **named)


def register() -> None:
    """Make the model types of all families known to `AutoConfig`."""
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        CONFIG_MAPPING.register(f"{PREFIX}{family}", _Family(family), exist_ok=True)  # type: ignore[arg-type]
