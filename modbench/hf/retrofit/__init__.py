"""Depth routing and experts for causal language models of Hugging Face transformers. Importing this
registers the classes with which ``AutoModelForCausalLM.from_pretrained`` loads what was saved."""

from modbench.hf.passes import installed

installed()

from modbench.hf.cache import decoding_report as decoding_report  # noqa: E402
from modbench.hf.retrofit.apply import receipt as receipt  # noqa: E402
from modbench.hf.retrofit.apply import retrofit as retrofit  # noqa: E402
from modbench.hf.retrofit.apply import upcycle as upcycle  # noqa: E402
from modbench.hf.retrofit.family import register as _register  # noqa: E402

_register()
