"""The operators of decisions, against their definitions in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from routing_ext.ops.policy_gradients import (
    collaboration_rewards,
    discounted_returns,
    handles,
    latest_actions,
    preference_states,
    sample_by_inversion,
    sample_categorical,
    taken,
    wpl_losses,
)


@pytest.fixture(autouse=True)
def _all_on_the_device(device: str) -> Iterator[None]:
    if device == "cpu":  # as it is: the mode that another device takes costs time
        yield
        return
    with torch.device(device):
        yield


def rng_state(device: str) -> Tensor:
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def as_torch_samples(probs: Tensor, sizes: list[int]) -> Tensor:
    noise = torch.cat([torch.empty(n, probs.size(1), dtype=probs.dtype).exponential_() for n in sizes])
    return (probs / noise).argmax(1)


class TestSampleCategorical:
    @each_dtype
    @pytest.mark.parametrize("k", [1, 2, 3, 8, 20, 33, 700])
    def test_is_the_recipe_of_torch_and_leaves_its_generator(self, k: int, dtype: torch.dtype, device: str) -> None:
        sizes = [3, 500, 1]
        probs = torch.rand(504, k, dtype=dtype)
        probs[::7, : k - 1] = 0
        probs[5] = 1
        torch.manual_seed(k)
        expected, after = as_torch_samples(probs, sizes), rng_state(device)
        torch.manual_seed(k)
        assert torch.equal(sample_categorical(probs, None, None, sizes, 504), expected)
        assert torch.equal(rng_state(device), after)

    @pytest.mark.parametrize("value", [0.0, 1e-44, 1e-38, 1e38, float("inf"), float("nan")])
    def test_extreme_probabilities(self, value: float) -> None:
        probs = torch.full((200, 6), value)
        probs[100:, 3] = 1e-3
        torch.manual_seed(0)
        expected = as_torch_samples(probs, [200])
        torch.manual_seed(0)
        assert torch.equal(sample_categorical(probs, None, None, [200], 200), expected)

    def test_near_ties_are_decided_exactly(self) -> None:
        torch.manual_seed(0)
        noise = torch.empty(300, 5).exponential_()
        probs = noise * (1 + 1e-7 * torch.randint(-3, 4, (300, 5)))  # all scores are 1 up to some roundings
        torch.manual_seed(0)
        assert torch.equal(sample_categorical(probs, None, None, [300], 300), (probs / noise).argmax(1))

    def test_shared_rows_and_idle_samples(self) -> None:
        probs, row_of, order = torch.rand(2, 4), torch.tensor([0, 1, 1, 0, 1]), torch.tensor([3, 1, 4, 0, 2])
        torch.manual_seed(1)
        expected = torch.zeros(5, dtype=torch.int64)
        expected[order[:3]] = as_torch_samples(probs[row_of[order[:3]]], [1, 2])
        torch.manual_seed(1)
        assert torch.equal(sample_categorical(probs, row_of, order, [1, 2], 5), expected)

    def test_wrong_arguments(self) -> None:
        probs = torch.rand(3, 4)
        with pytest.raises(RuntimeError, match=r"sample_categorical: probs must have 2 dimensions"):
            sample_categorical(probs[0], None, None, [3], 3)
        with pytest.raises(RuntimeError, match=r"sample_categorical: sizes must add up to the batch of 3, got \[2\]"):
            sample_categorical(probs, None, None, [2], 3)
        with pytest.raises(RuntimeError, match=r"sample_categorical: probs must have at least one action"):
            sample_categorical(probs[:, :0], None, None, [3], 3)
        with pytest.raises(RuntimeError, match=r"sample_categorical: probs must be float32 or float64, got Half"):
            sample_categorical(probs.half(), None, None, [3], 3)

    @pytest.mark.usefixtures("cpu_kernels")
    def test_index_out_of_range(self) -> None:
        probs = torch.rand(3, 4)
        with pytest.raises(RuntimeError, match=r"sample_categorical: row_of must be in \[0, 3\), got 3"):
            sample_categorical(probs, torch.tensor([0, 1, 3]), None, [3], 3)
        with pytest.raises(RuntimeError, match=r"sample_categorical: order must be in \[0, 3\), got -1"):
            sample_categorical(probs, None, torch.tensor([0, 1, -1]), [3], 3)

    @pytest.mark.usefixtures("cuda_kernels")
    def test_index_out_of_range_on_cuda(self) -> None:
        probs = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        row_of, order = torch.tensor([0, 2, 1, -1]), torch.tensor([0, 1, 9, 3])
        for sample in (sample_categorical, sample_by_inversion):
            assert sample(probs, row_of, order, [1, 3], 4).tolist()[:2] == [1, 0]

    def test_opcheck(self) -> None:
        arguments = (torch.rand(3, 4), None, None, [3], 3)
        torch.library.opcheck(
            torch.ops.routing_ext.sample_categorical.default,
            arguments,
            test_utils=("test_schema", "test_autograd_registration"),
        )


class TestSampleByInversion:
    @each_dtype
    def test_frequencies(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        probs = torch.tensor([[0, 1, 0, 3, 0], [2, 0, 0, 1, 1]], dtype=dtype)
        row_of = torch.arange(40000) % 2
        actions = sample_by_inversion(probs, row_of, None, [40000], 40000)
        for row in range(2):
            found = torch.bincount(actions[row_of == row], minlength=5) / 20000
            assert_close(found, (probs[row] / 4).float(), rtol=0, atol=0.015)
            assert (found == 0).equal(probs[row] == 0)

    def test_idle_samples(self) -> None:
        probs, order = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 1.0]]), torch.tensor([2, 0, 1])
        assert sample_by_inversion(probs, None, order, [1, 1], 3).tolist() == [1, 0, 1]

    def test_one_number_a_sample(self, device: str) -> None:
        torch.manual_seed(0)
        sample_by_inversion(torch.ones(7, 9), None, None, [3, 4], 7)
        after = rng_state(device)
        torch.manual_seed(0)
        torch.rand(7)
        assert torch.equal(rng_state(device), after)

    def test_an_action_of_probability_0_is_never_drawn(self) -> None:
        probs = torch.tensor([0.1, 0, 0.2, 0, 0.3, 0, 0.4]).repeat(1000, 1) / 3
        actions = sample_by_inversion(probs, None, None, [1000], 1000)
        assert set(actions.tolist()) == {0, 2, 4, 6}

    def test_wrong_arguments(self) -> None:
        probs = torch.rand(3, 4)
        with pytest.raises(RuntimeError, match=r"sample_by_inversion: row_of must be given where probs has not one row"):
            sample_by_inversion(probs, None, None, [4], 4)
        with pytest.raises(RuntimeError, match=r"sample_by_inversion: order must be given where not all of 3 samples decide"):
            sample_by_inversion(probs, None, None, [2], 3)

    @pytest.mark.usefixtures("cpu_kernels")
    def test_index_out_of_range(self) -> None:
        with pytest.raises(RuntimeError, match=r"sample_by_inversion: row_of must be in \[0, 3\), got 3"):
            sample_by_inversion(torch.rand(3, 4), torch.tensor([0, 1, 3]), None, [3], 3)


def plain_states(preferences: list[Tensor], values: list[Tensor], eps: float | None = None) -> tuple[Tensor, Tensor]:
    preference = torch.cat(preferences)
    shifted = preference - preference.min(1, keepdim=True)[0] + 1e-6
    probs = shifted / shifted.sum(1, keepdim=True)
    eps = torch.finfo(probs.dtype).eps if eps is None else eps
    return torch.stack((probs.clamp(eps, 1 - eps).log(), torch.cat(values)), 2), probs


class TestPreferenceStates:
    @each_dtype
    @pytest.mark.parametrize("k", [1, 2, 5, 20])
    def test_is_the_definition(self, k: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        parts = [torch.rand(n, k, dtype=dtype, requires_grad=True) for n in (1, 3, 1) * 2]
        states, probs = preference_states(parts[:3], parts[3:])
        expected, expected_probs = plain_states(parts[:3], parts[3:])
        assert_close(probs, expected_probs)
        assert not probs.requires_grad
        assert_close(states, expected)
        # In float32 the definition loses half of the digits, where a large gradient is added and taken away again.
        grad, exact = torch.rand_like(states), [t.detach().double().requires_grad_() for t in parts]
        expected, _ = plain_states(exact[:3], exact[3:], torch.finfo(dtype).eps)
        found = torch.autograd.grad(states, parts, grad)
        of_exact = [g.to(dtype) for g in torch.autograd.grad(expected, exact, grad.double())]
        assert_close(list(found), of_exact, rtol=1e-3, atol=1e-5)

    def test_many_tables_and_selections(self) -> None:
        torch.manual_seed(0)
        parts = [torch.rand(n, 70, dtype=torch.float64, requires_grad=True) for n in [1, 0, 20, *[1] * 150] * 2]
        states, probs = preference_states(parts[:153], parts[153:])
        expected, expected_probs = plain_states(parts[:153], parts[153:])
        assert_close(probs, expected_probs)
        assert_close(states, expected)
        grad = torch.rand_like(states)
        assert_close(torch.autograd.grad(states, parts, grad), torch.autograd.grad(expected, parts, grad))

    def test_gradients(self) -> None:
        torch.manual_seed(0)
        parts = [torch.rand(1, 4, dtype=torch.float64, requires_grad=True) for _ in range(6)]
        assert torch.autograd.gradcheck(lambda *p: preference_states(p[:3], p[3:])[0], parts)
        assert torch.autograd.gradgradcheck(lambda *p: preference_states(p[:3], p[3:])[0], parts)

    def test_ties_give_the_gradient_to_the_first(self) -> None:
        part, value = torch.full((1, 3), 0.5, dtype=torch.float64, requires_grad=True), torch.zeros(1, 3, dtype=torch.float64)
        states, _ = preference_states([part], [value])
        (own,) = torch.autograd.grad(states[0, 2, 0], part)
        (expected,) = torch.autograd.grad(plain_states([part], [value])[0][0, 2, 0], part)
        assert_close(own, expected)


class TestTaken:
    @each_dtype
    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("channels", [None, 1, 3])
    def test_is_the_definition(self, channels: int | None, shared: bool, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        shapes = [(4, 5), (6, 2)]
        rows = [torch.rand(*s, *([channels] if channels else []), dtype=dtype, requires_grad=True) for s in shapes]
        row_of = [torch.randint(n, (9,)) if shared else torch.arange(n) for n, _ in shapes]
        actions = [torch.randint(k, r.shape) for (_, k), r in zip(shapes, row_of, strict=True)]
        own = taken(rows, row_of if shared else [], actions)
        whole = [t if channels else t.unsqueeze(2) for t in rows]
        expected = torch.cat([t[r, a] for t, r, a in zip(whole, row_of, actions, strict=True)]).unbind(1)
        assert_close(own, list(expected), rtol=0, atol=0)
        grads = [torch.rand_like(t) for t in own]
        assert_close(torch.autograd.grad(own, rows, grads), torch.autograd.grad(expected, rows, grads))

    @pytest.mark.parametrize("shared", [False, True])
    def test_gradients(self, shared: bool) -> None:
        row_of = [torch.tensor([2, 0, 2])] if shared else []
        rows, actions = torch.rand(3, 4, 2, dtype=torch.float64, requires_grad=True), torch.tensor([3, 0, 3])
        assert torch.autograd.gradcheck(lambda r: tuple(taken([r], row_of, [actions])), rows)
        assert torch.autograd.gradgradcheck(lambda r: tuple(taken([r], row_of, [actions])), rows)

    def test_part_of_the_channels_has_a_gradient(self) -> None:
        rows = torch.rand(3, 4, 2, requires_grad=True)
        taken([rows], [], [torch.tensor([3, 0, 3])])[1].sum().backward()
        assert rows.grad is not None
        assert rows.grad[:, :, 0].abs().sum() == 0
        assert rows.grad[:, :, 1].sum() == 3

    def test_strided_actions(self) -> None:
        rows, actions = torch.rand(3, 4), torch.tensor([[1, 0], [2, 0], [3, 0]])[:, 0]
        assert_close(taken([rows], [], [actions])[0], rows[torch.arange(3), actions])

    def test_wrong_arguments(self) -> None:
        rows, actions = torch.rand(3, 4), torch.tensor([0, 1, 2])
        with pytest.raises(RuntimeError, match=r"taken: actions must have 1 tensor\(s\) like rows, got 2"):
            taken([rows], [], [actions, actions])
        with pytest.raises(RuntimeError, match=r"taken: row_of must have one row for each of 3 actions"):
            taken([rows], [actions[:2]], [actions])
        with pytest.raises(RuntimeError, match=r"taken: rows must be alike in dtype and channels"):
            taken([rows, rows.double()], [], [actions, actions])
        with pytest.raises(RuntimeError, match=r"taken: actions must be at most 2, one a row, got 3"):
            taken([rows[:2]], [], [actions])
        with pytest.raises(RuntimeError, match=r"taken: rows must be float32 or float64, got Half"):
            taken([rows.half()], [], [actions])

    @pytest.mark.usefixtures("cpu_kernels")
    def test_index_out_of_range(self) -> None:
        rows, actions = torch.rand(3, 4), torch.tensor([0, 1, 2])
        with pytest.raises(RuntimeError, match=r"taken: actions must be in \[0, 4\), got 4"):
            taken([rows], [], [actions + 2])
        with pytest.raises(RuntimeError, match=r"taken: row_of must be in \[0, 3\), got 3"):
            taken([rows], [actions + 1], [actions])
        with pytest.raises(RuntimeError, match=r"taken: rows must have at least one tensor"):
            taken([], [], [])

    @pytest.mark.usefixtures("cuda_kernels")
    def test_index_out_of_range_on_cuda(self) -> None:
        rows = torch.ones(3, 4, requires_grad=True)
        (own,) = taken([rows], [torch.tensor([0, 3, 1, -1])], [torch.tensor([4, 0, 2, 0])])
        assert own.tolist() == [0, 0, 1, 0]
        own.sum().backward()
        assert rows.grad is not None
        assert rows.grad.nonzero().tolist() == [[1, 2]]


class TestWplLosses:
    @each_dtype
    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("channels", [2, 5])
    def test_is_the_definition(self, channels: int, shared: bool, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        rows = [torch.randn(n, k, channels, dtype=dtype, requires_grad=True) for n, k in ((9, 4), (9, 3))]
        row_of = [torch.randint(9, (9,)) for _ in rows] if shared else []
        actions, returns = [torch.randint(r.size(1), (9,)) for r in rows], [torch.randn(9, dtype=dtype) for _ in rows]
        policy, value, *_ = taken(rows, row_of, actions)
        gradient = torch.cat(returns) - value
        projected = torch.where(gradient < 0, 1 + gradient, 2 - gradient)
        expected = (policy - (policy * projected).detach()) ** 2 + (value - torch.cat(returns)) ** 2
        losses = wpl_losses(rows, row_of, actions, returns)
        assert_close(losses, expected)
        grad = torch.rand_like(losses)
        assert_close(torch.autograd.grad(losses, rows, grad, True), torch.autograd.grad(expected, rows, grad, True))
        mine, theirs = (torch.autograd.grad(t, rows, grad, create_graph=True) for t in (losses, expected))
        assert_close(mine, theirs)
        for own, other in zip(mine, theirs, strict=True):
            assert_close(
                torch.autograd.grad(own.sum(), rows, retain_graph=True, materialize_grads=True),
                torch.autograd.grad(other.sum(), rows, retain_graph=True, materialize_grads=True),
            )

    def test_wrong_arguments(self) -> None:
        rows, actions, returns = torch.rand(3, 4, 2), torch.tensor([0, 1, 2]), torch.rand(3)
        with pytest.raises(RuntimeError, match=r"wpl_losses: returns must be constants, one for each action"):
            wpl_losses([rows], [], [actions], [returns[:2]])
        with pytest.raises(RuntimeError, match=r"wpl_losses: returns must be constants, one for each action"):
            wpl_losses([rows], [], [actions], [returns.requires_grad_()])
        with pytest.raises(RuntimeError, match=r"wpl_losses: rows must have at least 2 channels"):
            wpl_losses([rows[:, :, 0]], [], [actions], [returns])

    @pytest.mark.usefixtures("cpu_kernels")
    def test_index_out_of_range(self) -> None:
        rows, actions, returns = torch.rand(3, 4, 2), torch.tensor([0, 1, 2]), torch.rand(3)
        with pytest.raises(RuntimeError, match=r"wpl_losses: actions must be in \[0, 4\), got 4"):
            wpl_losses([rows], [], [actions + 2], [returns])

    @pytest.mark.parametrize("shared", [False, True])
    def test_many_parts_decisions_and_selections(self, shared: bool) -> None:
        """More than a launch takes, a block has threads, a block has columns."""
        torch.manual_seed(0)
        sizes = [(1, 1), (70, 3), (5, 600), *[(3, 2)] * 40]
        rows = [torch.randn(n, k, 2, dtype=torch.float64, requires_grad=True) for n, k in sizes]
        counts = [300 if shared else n for n, _ in sizes]
        row_of = [torch.randint(n, (c,)) for (n, _), c in zip(sizes, counts, strict=True)]
        actions = [torch.randint(k, (c,)) for (_, k), c in zip(sizes, counts, strict=True)]
        returns = [torch.randn(c, dtype=torch.float64) for c in counts]
        losses = wpl_losses(rows, row_of if shared else [], actions, returns)
        places = row_of if shared else [torch.arange(c) for c in counts]
        policy, value = torch.cat([t[r, a] for t, r, a in zip(rows, places, actions, strict=True)]).unbind(1)
        gradient = torch.cat(returns) - value
        projected = torch.where(gradient < 0, 1 + gradient, 2 - gradient)
        expected = (policy - (policy * projected).detach()) ** 2 + gradient**2
        assert_close(losses, expected)
        grad = torch.rand_like(losses)
        assert_close(torch.autograd.grad(losses, rows, grad), torch.autograd.grad(expected, rows, grad))


class TestLatestActions:
    @pytest.mark.parametrize("kept", [0, 1, 3, 4, 6, 9])
    def test_is_the_end_of_both(self, kept: int) -> None:
        known, new = torch.arange(4), torch.arange(4, 7)
        assert torch.equal(latest_actions(known, new, kept), torch.arange(max(7 - kept, 0), 7))
        assert torch.equal(latest_actions(None, new, kept), torch.arange(max(7 - kept, 4), 7))

    def test_is_a_tensor_of_its_own(self) -> None:
        new = torch.arange(3)
        latest = latest_actions(None, new, 3)
        new.zero_()
        assert torch.equal(latest, torch.arange(3))

    def test_wrong_arguments(self) -> None:
        with pytest.raises(RuntimeError, match=r"latest_actions: actions must have dtype Long"):
            latest_actions(None, torch.ones(3), 3)


class TestCollaborationRewards:
    def test_is_the_definition(self) -> None:
        history, actions = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([2, 2, 0, 3])
        frequencies, rewards = collaboration_rewards(history, actions, 4, 0.3)
        expected = torch.bincount(history, minlength=4) / 5 * 0.3
        assert torch.equal(frequencies, expected)
        assert torch.equal(rewards, expected[actions] * 0.3)

    def test_many_actions_and_a_strided_history(self) -> None:
        torch.manual_seed(0)
        history, actions = torch.randint(300, (90, 2))[:, 0], torch.randint(300, (700,))
        frequencies, rewards = collaboration_rewards(history, actions, 300, 0.5)
        expected = torch.bincount(history, minlength=300) / 90 * 0.5
        assert torch.equal(frequencies, expected)
        assert torch.equal(rewards, expected[actions] * 0.5)

    @pytest.mark.usefixtures("cuda_kernels")
    def test_action_out_of_range_on_cuda(self) -> None:
        frequencies, rewards = collaboration_rewards(torch.tensor([0, 2, -1, 0]), torch.tensor([2, 0, -3]), 2, 1.0)
        assert frequencies.tolist() == [0.5, 0]
        assert rewards.tolist() == [0, 0.5, 0]

    @pytest.mark.usefixtures("cpu_kernels")
    def test_action_out_of_range(self) -> None:
        history = torch.tensor([0, 2])
        with pytest.raises(RuntimeError, match=r"collaboration_rewards: history must be in \[0, 2\), got 2"):
            collaboration_rewards(history, history, 2, 0.3)
        with pytest.raises(RuntimeError, match=r"collaboration_rewards: actions must be in \[0, 3\), got 3"):
            collaboration_rewards(history, history + 1, 3, 0.3)


class TestDiscountedReturns:
    @each_dtype
    @pytest.mark.parametrize("normalise", [False, True])
    @pytest.mark.parametrize("steps", [1, 3, 130])
    def test_is_the_definition(self, steps: int, normalise: bool, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        given, final = torch.randn(steps, 300, dtype=dtype), torch.randn(300, dtype=dtype)
        rewards, returns = discounted_returns(given.unbind(), final, normalise, 0.5)
        expected = given / steps * (final.abs() if normalise else 1)
        expected[-1] += final
        assert torch.equal(torch.stack(rewards), expected)
        for j in reversed(range(steps - 1)):
            expected[j] += 0.5 * expected[j + 1]
        assert_close(torch.stack(returns), expected)

    def test_wrong_arguments(self) -> None:
        with pytest.raises(RuntimeError, match=r"discounted_returns: rewards must be like final_reward"):
            discounted_returns([torch.ones(3)], torch.ones(2), True, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_handles(dtype: torch.dtype) -> None:
    assert handles([torch.ones(2, dtype=dtype)]) == (dtype in (torch.float32, torch.float64))
    assert not handles([torch.ones(2), torch.ones(2, dtype=torch.float64)])
    assert not handles([torch.ones(2), torch.ones(2, device="meta")])
