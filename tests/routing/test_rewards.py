"""Final and per-action rewards, for a sample and for a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import generator
from torch import Tensor

from routing_ext.routing import (
    BaseReward,
    CollaborationReward,
    CorrectClassifiedReward,
    ManualReward,
    NegLossReward,
    PerActionBaseReward,
    RunningAverageCollaborationReward,
)
from routing_ext.routing.rewards import final_rewards, register_all, rewards_of

K = 4
PER_ACTION = {
    "none": lambda: PerActionBaseReward(10),
    "collaboration": lambda: CollaborationReward(0.3, K, 10),
    "running average": lambda: RunningAverageCollaborationReward(0.3, K, 10),
    "manual": lambda: ManualReward([0.5, -1.0, 2.0, 0.0], K),
}


def draw(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``(states [count, K, 5], actions [count])``"""
    actions = torch.randint(K, (count,), generator=generator(seed))
    return torch.randn(count, K, 5, generator=generator(seed)), actions


class TestFinal:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_negative_loss(self, dtype: torch.dtype) -> None:
        loss = torch.tensor([0.5, 2.0], dtype=dtype, requires_grad=True)
        reward = final_rewards(NegLossReward(), loss, torch.ones(2, 3), torch.ones(2))
        assert reward.tolist() == [-0.5, -2.0]
        assert reward.dtype is dtype
        assert not reward.requires_grad
        one = NegLossReward()(loss[:1], torch.ones(1, 3), torch.ones(1))
        assert one.shape == ()
        assert one == -0.5

    @pytest.mark.parametrize(
        ("yest", "ytrue"),
        [
            (torch.tensor([[1.0, 3.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1, 1])),
            (torch.tensor([[1.0, 3.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0, 1], [0, 1], [0, 1]])),
            (torch.tensor([1, 0, 1]), torch.tensor([1, 1, 1])),
            (torch.tensor([[1], [0], [1]]), torch.tensor([1, 1, 1])),
            (torch.tensor([1, 0, 1]), torch.tensor([[0, 1], [0, 1], [0, 1]])),
        ],
    )
    def test_correct_class(self, yest: Tensor, ytrue: Tensor) -> None:
        """Of scores, indices or one-hot rows."""
        reward = CorrectClassifiedReward()
        assert final_rewards(reward, torch.ones(3), yest, ytrue).tolist() == [1.0, -1.0, 1.0]
        assert [reward(torch.ones(1), yest[i : i + 1], ytrue[i : i + 1]).item() for i in range(3)] == [1.0, -1.0, 1.0]

    def test_users_for_a_sample(self) -> None:
        class Own(BaseReward):
            def forward(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
                assert len(loss) == len(yest) == len(ytrue) == 1
                return self._scale * loss

        assert final_rewards(Own(3.0), torch.tensor([1.0, 2.0]), torch.ones(2, 3), torch.ones(2)).tolist() == [3.0, 6.0]

    def test_users_for_a_batch(self) -> None:
        class Own(NegLossReward):
            def forward_batch(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
                return super().forward_batch(loss, yest, ytrue) * self._scale

        assert final_rewards(Own(3.0), torch.tensor([1.0, 2.0]), torch.ones(2, 3), torch.ones(2)).tolist() == [-3.0, -6.0]

    def test_users_from_one_of_ours(self) -> None:
        class Own(NegLossReward):
            def forward(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
                return super().forward(loss, yest, ytrue) + 1

        assert final_rewards(Own(), torch.tensor([1.0, 2.0]), torch.ones(2, 3), torch.ones(2)).tolist() == [0.0, -1.0]

    def test_base_has_none(self) -> None:
        with pytest.raises(NotImplementedError, match="BaseReward has no forward"):
            BaseReward()(torch.ones(1), torch.ones(1, 3), torch.ones(1))


class TestPerAction:
    @pytest.mark.parametrize("kind", PER_ACTION)
    @pytest.mark.parametrize("sizes", [[1], [3], [2, 3], [10], [11], [4, 9, 1], [35], [0, 3, 0]])
    def test_batch_as_sample_by_sample(self, kind: str, sizes: Sequence[int]) -> None:
        batched, single = PER_ACTION[kind](), PER_ACTION[kind]()
        for seed, size in enumerate(sizes):
            states, actions = draw(size, seed)
            register_all(batched, states, actions)
            for i in range(size):
                single.register(states[i : i + 1], actions[i])
        states, actions = draw(6, 9)
        expected = torch.stack([single.get_reward(states[i : i + 1], actions[i]).reshape(()) for i in range(6)])
        torch.testing.assert_close(rewards_of(batched, states, actions), expected)

    def test_none(self) -> None:
        assert rewards_of(PerActionBaseReward(), *draw(3)).tolist() == [0.0] * 3
        assert PerActionBaseReward().get_reward(torch.ones(1, K, 5), torch.tensor(2)) == 0

    @pytest.mark.parametrize("num_actions", [K, None])
    def test_collaboration(self, num_actions: int | None) -> None:
        """The ratio counts twice."""
        reward = CollaborationReward(0.3, num_actions, history_len=10)
        history: deque[int] = deque(maxlen=10)
        for seed, size in enumerate((3, 4, 25, 2)):
            states, actions = draw(size, seed)
            register_all(reward, states, actions)
            history.extend(actions.tolist())
            expected = torch.tensor([0.3 * 0.3 * history.count(int(a)) / len(history) for a in actions])
            torch.testing.assert_close(rewards_of(reward, states, actions), expected)

    @pytest.mark.parametrize("num_actions", [K, None])
    def test_running_average(self, num_actions: int | None) -> None:
        reward = RunningAverageCollaborationReward(0.3, num_actions, history_len=10)
        rate, average = 10 ** (-1 / 10), torch.zeros(K, dtype=torch.float64)
        for seed, size in enumerate((1, 4, 25, 2)):
            states, actions = draw(size, seed)
            register_all(reward, states, actions)
            for action in actions:
                average = rate * average
                average[action] += 1 - rate
                average = average / average.sum()
            torch.testing.assert_close(rewards_of(reward, states, actions), 0.3 * average[actions].float())

    def test_defaults(self) -> None:
        assert CollaborationReward()._reward_ratio == RunningAverageCollaborationReward()._reward_ratio == 0.1
        assert CollaborationReward()._hist_len == PerActionBaseReward()._hist_len == 256

    def test_manual(self) -> None:
        reward = ManualReward([0.5, -1.0, 2.0, 0.0])
        assert rewards_of(reward, torch.ones(3, K, 5), torch.tensor([2, 0, 1])).tolist() == [2.0, 0.5, -1.0]
        assert rewards_of(ManualReward([3.0], 1), torch.ones(2, 1, 5), torch.tensor([0, 0])).tolist() == [3.0, 3.0]
        with pytest.raises(ValueError, match="ManualReward: rewards must have 3 values, one an action, got 2"):
            ManualReward([1.0, 2.0], 3)

    @pytest.mark.parametrize("kind", [CollaborationReward, RunningAverageCollaborationReward])
    def test_clear(self, kind: Any) -> None:
        reward = kind(0.3, K)
        states, actions = torch.ones(2, K, 5), torch.tensor([1, 1])
        with pytest.raises(ValueError, match=rf"{kind.__name__}\.get_reward: no action was registered yet"):
            rewards_of(reward, states, actions)
        register_all(reward, states, torch.tensor([0, 0]))
        assert not rewards_of(reward, states, actions).any()
        reward.clear()
        register_all(reward, states, actions)
        before = rewards_of(reward, states, actions)
        assert before.tolist() == pytest.approx([0.3 * (0.3 if kind is CollaborationReward else 1.0)] * 2)

    def test_history_is_no_view_of_the_batch(self) -> None:
        reward = CollaborationReward(0.3, K)
        states, actions = draw(5)
        register_all(reward, states, actions)
        before = rewards_of(reward, states, actions.clone())
        same = actions.clone()
        actions.zero_()
        assert torch.equal(rewards_of(reward, states, same), before)

    def test_users_per_sample(self) -> None:
        """Sees five channels, and only decisions that were made."""

        class Own(PerActionBaseReward):
            def get_reward(self, dist: Tensor, action: Tensor) -> Tensor:
                assert dist.shape == (1, K, 5)
                return dist[0, action, 1] + 1

        states, actions = torch.randn(3, K, 2), torch.tensor([1, 2, 3])
        rewards = rewards_of(Own(), states, actions, torch.tensor([True, False, True]))
        assert rewards.tolist() == [states[0, 1, 1] + 1, 0, states[2, 3, 1] + 1]
        assert rewards_of(Own(), states[:, :, :1], actions).tolist() == [1.0] * 3

    def test_users_for_a_batch(self) -> None:
        class Own(CollaborationReward):
            def get_reward_batch(self, states: Tensor, actions: Tensor) -> Tensor:
                return -super().get_reward_batch(states, actions)

        own, ours = Own(0.3, K), CollaborationReward(0.3, K)
        states, actions = draw(5)
        for reward in (own, ours):
            register_all(reward, states, actions)
        assert torch.equal(rewards_of(own, states, actions), -rewards_of(ours, states, actions))

    def test_what_users_find(self) -> None:
        """The last choices, in the deques that the reference has."""

        class Own(PerActionBaseReward):
            def get_reward(self, dist: Tensor, action: Tensor) -> Tensor:
                assert isinstance(self._actions, deque)
                assert isinstance(self._dists, deque)
                assert all(seen.shape == (1, K, 5) and not seen.requires_grad for seen in self._dists)
                return torch.stack(list(self._dists))[:, 0, action, 0].sum() + torch.stack(list(self._actions)).sum()

        own = Own(4)
        for seed in range(2):
            states, actions = draw(3, seed)
            register_all(own, states[:, :, :2].requires_grad_(), actions)
        states, actions = (torch.cat(parts)[-4:] for parts in zip(draw(3, 0), draw(3, 1), strict=True))
        expected = [states[:, a, 0].sum() + actions.sum() for a in (1, 3)]
        assert torch.equal(rewards_of(own, states[:2], torch.tensor([1, 3])), torch.stack(expected))
        own.clear()
        assert len(own._actions) == len(own._dists) == 0

    def test_users_fill_what_ours_read(self) -> None:
        class Chosen(CollaborationReward):
            def register(self, dist: Tensor, action: Tensor) -> None:
                if len(self._actions) < 2:
                    super().register(dist, action)
                elif action == 1:
                    self._actions.append(action)
                    self._dists.append(dist)

        own, ours = Chosen(0.3, K, 6), CollaborationReward(0.3, K, 6)
        states, actions = torch.randn(7, K, 5), torch.tensor([3, 0, 2, 1, 1, 0, 1])
        register_all(own, states, actions)
        register_all(ours, states[:5], torch.tensor([3, 0, 1, 1, 1]))
        assert torch.equal(rewards_of(own, states, actions), rewards_of(ours, states, actions))

    def test_not_one_number(self) -> None:
        class Own(PerActionBaseReward):
            def get_reward(self, dist: Tensor, action: Tensor) -> Tensor:
                return dist[0, :, 0]

        with pytest.raises(ValueError, match=r"Own\.get_reward: must be one number, got \[4\]"):
            rewards_of(Own(), torch.ones(2, K, 5), torch.tensor([1, 2]))
        with pytest.raises(ValueError, match=r"of a sample: must be one number, got \[3\]"):
            final_rewards(lambda loss, yest, ytrue: yest[0], torch.ones(2), torch.ones(2, 3), torch.ones(2))

    def test_any_object(self) -> None:
        class Own:
            def register(self, dist: Tensor, action: Tensor) -> None:
                self.last = int(action)

            def get_reward(self, dist: Tensor, action: Tensor) -> float:
                return float(action == self.last)

        own = Own()
        states, actions = torch.randn(3, K, 5), torch.tensor([1, 2, 1])
        register_all(own, states, actions)
        assert rewards_of(own, states, actions).tolist() == [1.0, 0.0, 1.0]
