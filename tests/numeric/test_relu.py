"""The ReLU of compiled graphs: torch's values and gradients, and no bool kept for backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import quantcfg as qc
from quantcfg.numeric.relu import relu

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own

EDGES = [-math.inf, -1.0, -1e-45, -0.0, 0.0, 1e-45, 0.3, 1.0, 1.5, 3e38, math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", ["eager", "aot_eager_decomp_partition"])
def test_it_is_the_relu_of_torch(backend, dtype):
    ours, theirs = (torch.tensor(EDGES, dtype=dtype, requires_grad=True) for _ in range(2))
    grad = torch.linspace(-2, 3, len(EDGES), dtype=dtype)
    torch.compiler.reset()
    y, expected = torch.compile(relu, fullgraph=True, backend=backend)(ours), torch.relu(theirs)
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(y, expected) and torch.equal(ours.grad, theirs.grad)
    assert relu(torch.tensor(math.nan)).isnan()


def kept_by(model, x):
    """What the compiled training step of a model keeps for backward."""
    kept = []
    torch.compiler.reset()
    call = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        call(x).sum().backward()
    return kept


@pytest.mark.parametrize("inplace", [True, False])
def test_a_compiled_training_step_keeps_no_bool_of_each_element(inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 2, 3)).train()
    x = torch.randn(2, 3, 8, 8)
    prepared = qc.prepare(model, {"": qc.get_default_qconfig()}, example_inputs=(x,), stage="qat")
    kept = kept_by(prepared, x)
    assert {tensor.dtype for tensor in kept} >= {torch.int8, torch.float32}
    assert all(tensor.numel() == 1 for tensor in kept if tensor.dtype is torch.bool)
    compiled = [parameter.grad.clone() for parameter in prepared.parameters()]
    eager = qc.prepare(model, {"": qc.get_default_qconfig()}, example_inputs=(x,), stage="qat")
    eager(x).sum().backward()
    for one, other in zip(compiled, eager.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)
