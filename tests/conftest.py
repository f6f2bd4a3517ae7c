"""The op tests can run on the CUDA kernels without a GPU: `pytest tests/ops --emulated-cuda ORDER` (docs/cuda-emulation.md).

There torch.ops.routing_ext takes CPU tensors, as always, but what runs is csrc/cuda. Raw operators then behave as on CUDA: an
index out of range does not raise, and dispatch_plan reports an action out of range in the layout. A test of something that
only the CPU kernels do asks for the fixture `emulated_cuda` and skips if it is true.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("routing_ext")
    group.addoption(
        "--emulated-cuda",
        type=int,
        metavar="ORDER",
        help="run on emulated CUDA kernels; threads in ascending (0), descending (-1) or random (any other seed) order",
    )
    group.addoption("--pretended-cuda", action="store_true", help="without a GPU: a device cuda whose kernels are emulated")
    group.addoption(
        "--device",
        choices=("cpu", "cuda"),
        help="only the tests of one device; cuda: those that take a device, and those that need a GPU",
    )
    group.addoption("--sanitize", action="store_true", help="run the op tests on emulated CUDA kernels under AddressSanitizer")
    if "--pretended-cuda" in sys.argv:  # now: the next file of this name asks which devices there are
        import pretended_cuda

        pretended_cuda.install()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device cuda: no GPU that torch {torch.__version__} can use")
    order = config.getoption("--emulated-cuda")
    if order is None:
        return
    import emulated_build

    import routing_ext  # noqa: F401  (registers the kernels that the emulated ones replace)

    emulated_build.load(sanitize="libasan" in os.environ.get("LD_PRELOAD", "")).set_order(order)
    # Memory from at::empty is NaN, so that an element that no kernel writes is seen.
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)


def _needs_cuda(item: pytest.Item) -> bool:
    device = getattr(item, "callspec", None) and item.callspec.params.get("device")  # type: ignore[attr-defined]
    return device == "cuda" or item.get_closest_marker("cuda") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _needs_cuda(item) and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    wanted = config.getoption("--device")
    if wanted is not None:
        left_out = [item for item in items if _needs_cuda(item) != (wanted == "cuda")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _needs_cuda(item) == (wanted == "cuda")]


def pytest_report_header(config: pytest.Config) -> str | None:
    order = config.getoption("--emulated-cuda")
    return None if order is None else f"CUDA kernels: emulated, thread order {order}"


@pytest.fixture(scope="session")
def emulated_cuda(request: pytest.FixtureRequest) -> bool:
    """Whether torch.ops.routing_ext runs emulated CUDA kernels."""
    return request.config.getoption("--emulated-cuda") is not None
