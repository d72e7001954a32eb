"""Compiled code is never a silent zero: it runs as it was written, or is an error."""

import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench import FlopCounter
from modbench.errors import UserError

WEIGHT = torch.randn(16, 16, requires_grad=True)
MATMUL, PAIR = 2 * 8 * 16 * 16, 4 * 2 * 8


def program(x: Tensor) -> Tensor:
    q = (x @ WEIGHT).view(1, 8, 2, 8).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True).sum() + torch.relu(x @ WEIGHT).sum()


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet() -> None:
    torch._dynamo.reset()


def check(counter: FlopCounter) -> None:
    assert counter.total == 3 * (2 * MATMUL + 64 * PAIR)
    assert counter.total_model == 3 * (2 * MATMUL + 36 * PAIR)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_counts_as_it_was_written(backend: str, whole: bool) -> None:
    compiled, x = torch.compile(program, backend=backend, fullgraph=whole), torch.randn(8, 16)
    x.requires_grad_()
    with FlopCounter() as cold:
        compiled(x).backward()
    expected = compiled(x)
    expected.backward()  # compiled now
    with FlopCounter() as warm:
        got = compiled(x)
        got.backward()
    check(cold)
    check(warm)
    assert torch.equal(got, expected)
    loss = compiled(x)
    with FlopCounter() as backward:
        loss.backward()  # as compiled, whose ops arrive one by one
    assert backward.total == 2 * (2 * MATMUL + 64 * PAIR)


IN_A_FRESH_PROCESS = """
import sys
import torch
from modbench import FlopCounter

graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

def square(x):
    return x @ x.T

module, x, y = torch.nn.Linear(8, 8), torch.randn(5, 8), torch.randn(7, 8)
with FlopCounter() as counter:
    assert "torch._dynamo" not in sys.modules
    compiled = torch.compile(module, backend=backend)
    decorated = torch.compile(backend=backend)(square)
    module.compile(backend=backend)
    compiled(x), decorated(x), module(y)
    assert not graphs
print(counter.total, type(compiled).__name__)
compiled(x)
print(len(graphs))
decorated(x)
print(len(graphs))
"""


def test_what_is_compiled_inside_a_counter_is_compiled_after_it() -> None:
    """Also in a process that has not imported Dynamo when the counter begins."""
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(2 * 64 * (5 + 7) + 2 * 25 * 8), "OptimizedModule", "1", "2"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_inductors_code_is_left_out_or_refused() -> None:
    compiled, x = torch.compile(program), torch.randn(8, 16, requires_grad=True)
    loss = compiled(x)
    with pytest.raises(UserError, match="the forward pass included"), FlopCounter():
        loss.backward()
    with FlopCounter() as counter:
        compiled(x).backward()
    check(counter)
    compiled(x).backward()  # and is itself again
