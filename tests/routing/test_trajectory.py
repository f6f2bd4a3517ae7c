"""The batch's record behaves as the reference's list of one object a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import generator
from networks import Routed, by_hand
from torch import Tensor, nn

from routing_ext.routing import Initialization, Loss, ManualReward, NegLossReward, SampleMetaInformation, Trajectory

B = 6
KEYS = {"actions", "is_exploratory", "states", "loss_funcs", "reward_func"}
MASKS = [torch.tensor(mask).bool() for mask in ([1, 1, 1, 1, 0, 1], [1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 0, 1])]


@pytest.fixture
def network() -> Routed:
    torch.manual_seed(0)
    return Routed("ActorCritic", sizes=(4, 3, 6), agents=2, reward=lambda size: ManualReward([0.1 * i for i in range(size)]))


def run(network: Routed, masks: Sequence[Tensor] | None = None, mxs: Any = None) -> tuple[Tensor, Any]:
    torch.manual_seed(1)
    ys, mxs, _ = network(torch.randn(B, 6, generator=generator(2)), [0, 1, 0, 1, 1, 0], masks, mxs)
    return ys, mxs


def loss_of(ys: Tensor, mxs: Any, index: Sequence[int] = range(B)) -> tuple[Tensor, Tensor]:
    target = torch.arange(B) % 6
    return Loss(nn.CrossEntropyLoss(), NegLossReward())(ys[list(index)], mxs, target[list(index)], reduce=False)


class TestAsAList:
    def test_length_index_slice_iteration(self, network: Routed) -> None:
        _, mxs = run(network)
        assert isinstance(mxs, Trajectory)
        assert len(mxs) == B
        assert list(mxs) == [mxs[i] for i in range(B)]
        assert mxs[-1] is mxs[B - 1]
        assert mxs[torch.tensor(2)] is mxs[2]
        assert mxs[1:5:2] == [mxs[1], mxs[3]]
        assert mxs[::-1] == list(reversed(mxs))
        assert mxs[4:99] == [mxs[4], mxs[5]]
        assert mxs[3] in mxs
        assert mxs.index(mxs[3]) == 3
        with pytest.raises(IndexError):
            mxs[B]

    def test_joined(self, network: Routed) -> None:
        (_, first), (_, second) = run(network), run(network)
        assert first + second == [*first, *second]
        assert first + second[:2] == [*first, *second[:2]]
        assert first[:2] + second == [*first[:2], *second]

    def test_tasks(self, network: Routed) -> None:
        _, mxs = run(network)
        assert [mx.task for mx in mxs] == [0, 1, 0, 1, 1, 0]
        mxs[1].task = 7
        assert [mx.task for mx in mxs] == [0, 7, 0, 1, 1, 0]
        assert Initialization()(torch.ones(2, 1))[1][0].task is None
        assert [int(mx.task) for mx in Initialization()(torch.ones(2, 1), torch.tensor([3, 1]))[1]] == [3, 1]

    def test_steps(self, network: Routed) -> None:
        _, mxs = run(network)
        for i, mx in enumerate(mxs):
            assert len(mx.steps) == 3
            for step, size, decision, of_batch in zip(mx.steps, (4, 3, 6), network.decisions, mxs.batch_steps, strict=True):
                assert set(step) == KEYS
                assert step["actions"].shape == ()
                assert step["actions"].dtype is torch.int64
                assert step["actions"] == of_batch.actions[i]
                assert step["is_exploratory"].shape == ()
                assert step["is_exploratory"].dtype is torch.uint8
                assert step["states"].shape == (1, size, 5)
                assert torch.equal(step["states"][0, :, :2], of_batch.states[i])
                assert not step["states"][:, :, 2:].any()
                assert step["loss_funcs"] == decision._loss
                assert step["reward_func"] is decision.additional_reward_func

    def test_masked_samples_have_no_step(self, network: Routed) -> None:
        _, mxs = run(network, MASKS)
        assert [len(mx.steps) for mx in mxs] == [3, 2, 2, 3, 0, 3]
        assert mxs[1].steps[1]["loss_funcs"] == network.decisions[2]._loss

    def test_states_carry_gradients(self, network: Routed) -> None:
        _, mxs = run(network)
        mxs[1].steps[2]["states"].sum().backward()
        asked = network.decisions[2]._policy
        assert asked[1]._approx._layers[0].weight.grad is not None
        assert not asked[0]._approx._layers[0].weight.grad.any()

    def test_steps_grow(self, network: Routed) -> None:
        ys, mxs, _ = Initialization()(torch.randn(B, 6), [0] * B)
        assert mxs[0].steps == []
        agents = torch.zeros(B, dtype=torch.int64)
        network.decisions[0](ys, mxs, agents)
        assert len(mxs[0].steps) == 1
        first = mxs[0].steps[0]
        network.decisions[1](ys, mxs, agents)
        assert len(mxs[0].steps) == 2
        assert mxs[0].steps[0] is first

    def test_append(self, network: Routed) -> None:
        _, mxs = run(network)
        mxs[2].append("note", "hello")
        assert mxs[2].steps[-1]["note"] == "hello"
        assert "note" not in mxs[2].steps[0]
        assert "note" not in mxs[3].steps[-1]
        mxs[2].append("note", "new", new_step=True)
        assert [step.get("note") for step in mxs[2].steps] == [None, None, "hello", "new"]
        assert len(mxs[3].steps) == 3

    @pytest.mark.parametrize("fresh", [SampleMetaInformation, lambda: Initialization()(torch.ones(1, 1))[1][0]])
    def test_append_needs_a_step(self, fresh: Callable[[], Any]) -> None:
        with pytest.raises(ValueError, match=r"SampleMetaInformation\.append: 'note' needs a step"):
            fresh().append("note", 1)

    def test_finalize(self, network: Routed) -> None:
        _, mxs = run(network)
        mxs[0].append("note", "hello")
        mxs[0].finalize()
        assert mxs[0].note == [None, None, "hello"]
        assert [int(a) for a in mxs[0].actions] == [int(step.actions[0]) for step in mxs.batch_steps]
        assert mxs[0].reward_func == [decision.additional_reward_func for decision in network.decisions]

    def test_what_the_loss_leaves(self, network: Routed) -> None:
        ys, mxs = run(network, MASKS)
        assert not hasattr(mxs[0], "final_reward")
        assert not hasattr(mxs[0], "actions")
        module_loss, _ = loss_of(ys, mxs)
        assert torch.equal(torch.stack([mx.final_reward for mx in mxs]), -module_loss)
        assert len(mxs[1].actions) == len(mxs[1].states) == 2
        assert not hasattr(mxs[4], "actions")
        assert not hasattr(mxs[0], "anything_else")

    def test_what_the_loss_of_some_leaves(self, network: Routed) -> None:
        ys, mxs = run(network)
        module_loss, _ = loss_of(ys, mxs[2:4], [2, 3])
        assert mxs[3].final_reward == -module_loss[1]
        assert mxs[0].final_reward.isnan()

    def test_wrong_number_of_tasks(self) -> None:
        with pytest.raises(ValueError, match="Initialization: tasks must have one element for each of 3 samples, got 2"):
            Initialization()(torch.ones(3, 1), [0, 1])


class TestInTheLoss:
    """The routing loss is that of the samples' steps, whatever the user did with them."""

    @pytest.mark.parametrize("masks", [None, MASKS])
    @pytest.mark.parametrize(
        "index",
        [range(B), range(B - 1, -1, -1), [3, 0, 5, 1, 4, 2], [5, 1], [2], [1, 1, 0]],
        ids=lambda index: str(list(index)),
    )
    def test_reordered_and_filtered(self, network: Routed, index: Sequence[int], masks: Any) -> None:
        ys, mxs = run(network, masks)
        module_loss, routing_loss = loss_of(ys, mxs)
        some, some_routing = loss_of(ys, [mxs[i] for i in index], index)
        assert torch.equal(some, module_loss[list(index)])
        torch.testing.assert_close(some_routing, routing_loss[list(index)])

    def test_filtered_to_samples_without_a_decision(self, network: Routed) -> None:
        """As in the reference, the layer that none of them asked gets the gradient None."""
        masks = [torch.ones(B, dtype=torch.bool), torch.arange(B) < 3, torch.arange(B) < 2]
        ys, mxs = run(network, masks)
        sum(loss_of(ys, mxs[2:], range(2, B)))[0].backward()
        given = [any(p.grad is not None for p in decision.parameters()) for decision in network.decisions]
        assert given == [True, True, False]
        assert torch.equal(loss_of(ys, mxs[2:], range(2, B))[1], loss_of(ys, mxs)[1][2:])

    @pytest.mark.parametrize("masks", [None, MASKS])
    def test_plain_objects(self, network: Routed, masks: Any) -> None:
        ys, mxs = run(network, masks)
        plain = [SampleMetaInformation(task) for task in [0, 1, 0, 1, 1, 0]]
        ys_of_plain, returned = run(network, masks, plain)
        assert returned is plain
        assert torch.equal(ys_of_plain, ys)
        for mine, theirs in zip(plain, mxs, strict=True):
            assert len(mine.steps) == len(theirs.steps)
            for a, b in zip(mine.steps, theirs.steps, strict=True):
                assert set(a) == KEYS
                assert all(torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k] for k in KEYS)
        torch.testing.assert_close(loss_of(ys, plain), loss_of(ys, mxs))
        loss_of(ys, plain)
        assert hasattr(plain[0], "final_reward")
        assert len(plain[0].actions) == len(plain[0].steps)

    @pytest.mark.parametrize("masks", [None, MASKS])
    def test_samples_of_two_batches(self, network: Routed, masks: Any) -> None:
        first, second = run(network, masks), run(network, masks)
        mxs = [first[1][3], second[1][0], first[1][2], second[1][3]]
        index = [3, 0, 2, 3]
        torch.testing.assert_close(loss_of(first[0], mxs, index)[1], loss_of(first[0], first[1])[1][index])

    @pytest.mark.parametrize(
        "edit",
        {
            "appended": lambda mxs: [mx.append("add_rewards", 0.1 * i) for i, mx in enumerate(mxs) if mx.steps],
            "tensors": lambda mxs: mxs[3].append("add_rewards", torch.tensor(0.7)),
            "one": lambda mxs: mxs[0].append("add_rewards", -2.0),
            "none": lambda mxs: mxs[0].append("add_rewards", None),
            "written into a step": lambda mxs: mxs[3].steps[0].update(add_rewards=1.5),
            "other action": lambda mxs: mxs[3].append("actions", torch.tensor(2)),
            "other reward": lambda mxs: mxs[3].append("reward_func", ManualReward([3.0] * 6)),
            "less steps": lambda mxs: mxs[0].steps.pop(),
            "no steps": lambda mxs: setattr(mxs[0], "steps", []),
            "others' steps": lambda mxs: setattr(mxs[0], "steps", mxs[3].steps[:2]),
        }.items(),
        ids=lambda edit: edit[0],
    )
    @pytest.mark.parametrize("masks", [None, MASKS])
    def test_edited_samples(self, network: Routed, edit: tuple[str, Callable[[Any], Any]], masks: Any) -> None:
        ys, mxs = run(network, masks)
        module_loss, before = loss_of(ys, mxs)
        edit[1](mxs)
        after = loss_of(ys, mxs)[1]
        torch.testing.assert_close(after, by_hand(mxs, -module_loss.detach()))
        assert torch.allclose(after, before) == (edit[0] == "none")
        torch.testing.assert_close(loss_of(ys, list(mxs))[1], after)

    def test_notes_change_nothing(self, network: Routed) -> None:
        ys, mxs = run(network)
        before = loss_of(ys, mxs)[1]
        for mx in mxs:
            mx.append("note", 1)
        assert not mxs.is_edited()
        assert torch.equal(loss_of(ys, mxs)[1], before)

    def test_rewards_between_the_decisions(self, network: Routed) -> None:
        x = torch.randn(B, 6, generator=generator(2))
        torch.manual_seed(1)
        ys, mxs, _ = Initialization()(x, [0, 1] * 3)
        agents = torch.tensor([0, 1] * 3)
        for decision in network.decisions:
            ys, mxs, _ = decision(ys, mxs, agents)
            mxs[2].append("add_rewards", 0.5)
        assert [step["add_rewards"] for step in mxs[2].steps] == [0.5] * 3
        module_loss, routing_loss = loss_of(ys, mxs)
        torch.testing.assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))

    def test_steps_of_the_users_own(self, network: Routed) -> None:
        """A step between those of the layers stays there."""
        ys, mxs, _ = Initialization()(torch.randn(B, 6, generator=generator(2)), [0] * B)
        agents = torch.zeros(B, dtype=torch.int64)
        network.decisions[0](ys, mxs, agents)
        own = dict(mxs[0].steps[0], actions=torch.tensor(1))
        for name, value in own.items():
            mxs[0].append(name, value, new_step=name == "actions")
        network.decisions[2](ys, mxs, agents)
        assert [step["loss_funcs"] for step in mxs[0].steps] == [network.decisions[i]._loss for i in (0, 0, 2)]
        module_loss, routing_loss = loss_of(ys, mxs)
        torch.testing.assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))
