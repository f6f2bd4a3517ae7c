"""What an installed wheel must do: `python smoke.py [folder that routing_ext must not come from]`. Needs nothing but torch."""

import sys
from pathlib import Path

import torch

import routing_ext
from routing_ext import reference
from routing_ext.ops import dispatch_plan, grouped_linear
from routing_ext.routing import LinearBank, Selection

folder = Path(routing_ext.__file__).resolve().parent
for elsewhere in sys.argv[1:]:
    assert Path(elsewhere).resolve() not in folder.parents, f"imported from {folder}"
assert (folder / "py.typed").exists()

info = routing_ext.build_info()
assert info["version"] == routing_ext.__version__, info
for op in ("dispatch_plan", "gather_rows", "scatter_rows", "grouped_linear", "grouped_linear_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"routing_ext::{op}", "CPU"), op
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"routing_ext::{op}", "CUDA") == (info["cuda"] is not None), op

torch.manual_seed(0)
device = "cuda" if info["cuda"] and torch.cuda.is_available() else "cpu"
linears = [torch.nn.Linear(17, 9).to(device) for _ in range(5)]
weights, biases = [m.weight for m in linears], [m.bias for m in linears]
x = torch.randn(64, 17, device=device, requires_grad=True)
actions = torch.randint(4, (64,), device=device)  # nobody chooses the last module


def with_gradients(y):
    return [y, *torch.autograd.grad(y.square().sum(), [x, *weights, *biases], allow_unused=True)]


actual = with_gradients(grouped_linear(x, weights, biases, dispatch_plan(actions, 5), "relu"))
expected = with_gradients(reference.grouped_linear(x, weights, biases, reference.dispatch_plan(actions, 5), "relu"))
assert [t is None for t in actual] == [t is None for t in expected]
for a, e in zip(actual, expected, strict=True):
    if e is not None:
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)

ys, _, _ = Selection(*linears)(x, [{} for _ in range(64)], actions)
assert ys.shape == (64, 9)
torch.testing.assert_close(LinearBank.from_modules(linears)(x, actions), ys, rtol=1e-4, atol=1e-4)

print(f"routing_ext {info['version']} in {folder} works on {device}: {info}")
