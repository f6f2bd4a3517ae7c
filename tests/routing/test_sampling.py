"""Replayed actions, and the distributions of drawn ones."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from networks import ALGORITHMS, POLICIES, VALUES, PlainReinforce, Routed, assert_close
from torch import Tensor, nn

from routing_ext import routing
from routing_ext.routing import Decision, Initialization, Loss, NegLossReward, fast_sampling, replay, sampling
from routing_ext.routing.sampling import Draws

B = 10
X = torch.randn(B, 6, generator=torch.Generator().manual_seed(0))
TASKS = [0, 2, 2, 0, 0, 2, 0, 2, 0, 0]
MASKS = [torch.arange(B) % 4 != i for i in range(3)]


def results(network: Routed, masks: Any) -> list[Tensor]:
    network.zero_grad()
    ys, mxs, actions = network(X, TASKS, masks)
    losses = Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X, reduce=False)
    (losses[0] + losses[1]).mean().backward()
    steps = [t for step in mxs.batch_steps for t in (step.states.detach(), step.is_exploratory)]
    return [ys, *losses, *actions, *(p.grad for p in network.parameters() if p.grad is not None), *steps]


class TestReplay:
    @pytest.mark.parametrize("masks", [None, MASKS])
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    def test_as_if_drawn(self, algorithm: Any, masks: Any) -> None:
        """With drawn actions replayed, all is as when they were drawn."""
        torch.manual_seed(1)
        network = Routed(algorithm, agents=3)
        if algorithm in VALUES:  # exploration by chance is not to be seen in the action
            for decision in network.decisions:
                decision.set_exploration(0.0)
        torch.manual_seed(2)
        drawn = results(network, masks)
        torch.manual_seed(2)  # for what is drawn besides the actions
        with replay(drawn[3:6]):
            replayed = results(network, masks)
        for mine, expected in zip(replayed, drawn, strict=True):
            assert_close(mine.double(), expected.double())

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    def test_takes_what_it_is_given(self, algorithm: Any, training: bool) -> None:
        given = [torch.randint(4, (B,), generator=torch.Generator().manual_seed(i)) for i in range(3)]
        network = Routed(algorithm, agents=3).train(training)
        with replay(given):
            ys, _mxs, actions = network(X, TASKS)
            with pytest.raises(
                ValueError, match="replay: actions must have one element for each call of a decision layer, got fewer"
            ):
                network(X, TASKS)
        assert all(torch.equal(a, b) for a, b in zip(actions, given, strict=True))
        expected = X
        for selection, chosen in zip(network.selections, given, strict=True):
            expected = torch.stack([selection._submodules[k](x) for x, k in zip(expected, chosen.tolist(), strict=True)])
            expected = expected if selection is network.selections[-1] else expected.tanh()
        assert_close(ys, expected)
        _, _, after = network.eval()(X, TASKS)
        assert not all(torch.equal(a, b) for a, b in zip(after, given, strict=True)), "it is over"

    @pytest.mark.parametrize("algorithm", ["WPL", PlainReinforce])
    def test_masked_samples_take_action_0(self, algorithm: Any) -> None:
        with replay([torch.full((B,), 3)] * 3):
            _, mxs, actions = Routed(algorithm, agents=3)(X, TASKS, MASKS)
        for mask, taken, step in zip(MASKS, actions, mxs.batch_steps, strict=True):
            assert torch.equal(taken, torch.where(mask, 3, 0))
            assert not step.is_exploratory[~mask].any()

    def test_explored_where_it_is_not_the_best(self) -> None:
        decision = routing.QLearning(4, 6)
        with replay([torch.arange(B) % 4]):
            _, mxs, actions = decision(X, Initialization()(X)[1])
        step = mxs.batch_steps[0]
        assert torch.equal(step.is_exploratory, step.states[:, :, 0].argmax(1) != actions)

    def test_draws_nothing(self) -> None:
        before = torch.get_rng_state()
        for algorithm in POLICIES + VALUES:
            with replay([torch.zeros(B, dtype=torch.int64)]):
                network = Routed(algorithm, sizes=(4,))
                before = torch.get_rng_state()
                network(X)
            assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("actions", "message"),
        [
            (torch.zeros(3, dtype=torch.int64), "replay: actions must have one element for each of 10 samples, got 3"),
            (torch.full((B,), 4), r"replay: actions must be in \[0, 4\)"),
            (torch.full((B,), -1), r"replay: actions must be in \[0, 4\)"),
        ],
    )
    def test_errors(self, actions: Tensor, message: str) -> None:
        with replay([actions]), pytest.raises(ValueError, match=message):
            Routed("WPL")(X)

    def test_nested(self) -> None:
        decision = routing.QLearning(4, 6)

        def decide() -> int:
            return int(decision(X[:1], Initialization()(X[:1])[1])[2])

        with replay([torch.tensor([1]), torch.tensor([2])]):
            assert decide() == 1
            with replay([torch.tensor([3])]):
                assert decide() == 3
            assert decide() == 2

    def test_forms(self) -> None:
        with replay([torch.full((B, 1), 3, dtype=torch.int32)]):
            _, _, actions = Routed("WPL", sizes=(4,))(X)
        assert actions[0].tolist() == [3] * B
        assert actions[0].dtype is torch.int64


N = 20000
VALUES_OF_AGENTS = [[0.5, -0.7, 0.1, 1.2, 0.3], [0.0, 2.0, 0.3, -1.0, 0.4]]
EXPLORATION = 0.4
# Of chi-square with 4 degrees of freedom: P(> x) = exp(-x / 2) (1 + x / 2) < 1e-6.
CRITICAL = 34.0


def decision_with_tables(algorithm: str) -> Decision:
    decision: Decision = getattr(routing, algorithm)(
        5, 2, num_agents=2, policy_storage_type="tabular", exploration=EXPLORATION
    )
    for storage, values in zip(decision._policy, VALUES_OF_AGENTS, strict=True):
        storage._approx.data[0] = torch.tensor(values)
    return decision


def distribution(algorithm: str, values: list[float]) -> Tensor:
    """Of the actions of an agent whose table has these values."""
    table = torch.tensor(values, dtype=torch.float64)
    best = torch.zeros(5, dtype=torch.float64)
    best[table.argmax()] = 1
    if algorithm == "WPL":
        return (table - table.min() + 1e-6) / (table - table.min() + 1e-6).sum()
    if algorithm in VALUES:
        return (1 - EXPLORATION) * best + EXPLORATION / 5
    if algorithm.startswith("EGreedy"):
        return (1 - EXPLORATION) * best + EXPLORATION * table.softmax(0)
    return table.softmax(0)


def chi_square(actions: Tensor, probs: Tensor) -> float:
    expected = probs * len(actions)
    return float(((actions.bincount(minlength=5) - expected).square() / expected.clamp(min=1)).sum())


class TestDistributions:
    @pytest.mark.parametrize("fast", [True, False])
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_chi_square(self, algorithm: str, fast: bool) -> None:
        torch.manual_seed(3)
        decision, agents, x = decision_with_tables(algorithm), torch.arange(2 * N) % 2, torch.zeros(2 * N, 2)
        mxs = Initialization()(x)[1]
        if fast:
            with fast_sampling():
                _, _, actions = decision(x, mxs, agents)
        else:
            _, _, actions = decision(x, mxs, agents)
        for agent, values in enumerate(VALUES_OF_AGENTS):
            probs = distribution(algorithm, values)
            assert chi_square(actions[agents == agent], probs) < CRITICAL
            assert chi_square(actions[agents == agent], distribution(algorithm, VALUES_OF_AGENTS[1 - agent])) > 100

    def test_samples_are_independent(self) -> None:
        torch.manual_seed(3)
        x = torch.zeros(N, 2)
        with fast_sampling():
            _, _, actions = decision_with_tables("REINFORCE")(x, Initialization()(x)[1], torch.zeros(N))
        pairs = actions[::2] * 5 + actions[1::2]
        probs = distribution("REINFORCE", VALUES_OF_AGENTS[0])
        expected = (probs.unsqueeze(1) * probs).view(-1) * len(pairs)
        statistic = ((pairs.bincount(minlength=25) - expected).square() / expected).sum()
        assert statistic < 24 + 6 * 48**0.5


class TestFastSampling:
    def test_is_another_stream(self) -> None:
        network = Routed("WPL", agents=3)
        drawn = []
        for fast in (False, True, False):
            torch.manual_seed(1)
            if fast:
                with fast_sampling():
                    _, _, actions = network(X.repeat(9, 1), TASKS * 9)
            else:
                _, _, actions = network(X.repeat(9, 1), TASKS * 9)
            drawn.append(torch.stack(actions))
        assert torch.equal(drawn[0], drawn[2]), "it is over"
        assert not torch.equal(drawn[0], drawn[1])

    @pytest.mark.parametrize("masks", [None, MASKS])
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    def test_all_else_is_the_same(self, algorithm: Any, masks: Any) -> None:
        network = Routed(algorithm, agents=3)
        if algorithm in VALUES:
            for decision in network.decisions:
                decision.set_exploration(0.0)
        torch.manual_seed(2)
        with fast_sampling():
            drawn = results(network, masks)
            torch.manual_seed(2)
            with replay(drawn[3:6]):
                replayed = results(network, masks)
        for mine, expected in zip(replayed, drawn, strict=True):
            assert_close(mine.double(), expected.double())

    def test_one_number_a_sample(self) -> None:
        torch.manual_seed(1)
        expected = torch.rand(B, 1)
        torch.manual_seed(1)
        with fast_sampling():
            actions = Draws(B, None, [B], torch.device("cpu")).categorical(torch.full((B, 4), 0.25))
        assert torch.equal(actions, (4 * (1 - expected.view(-1))).long())

    def test_smallest_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Tensor, "uniform_", Tensor.zero_)
        monkeypatch.setattr(sampling, "handles", lambda tensors: False)  # as on other devices
        with fast_sampling():
            draws = Draws(2, None, [2], torch.device("cpu"))
        assert draws.categorical(torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]])).tolist() == [2, 1]

    @pytest.mark.parametrize("fast", [True, False])
    def test_certain_and_impossible_actions(self, fast: bool) -> None:
        probs = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).repeat(500, 1)
        with fast_sampling() if fast else contextlib.nullcontext():
            actions = Draws(1500, None, [1500], torch.device("cpu")).categorical(probs)
        assert torch.equal(actions, torch.tensor([1, 0, 2]).repeat(500))

    def test_evaluation_is_greedy(self) -> None:
        network = Routed("REINFORCE").eval()
        with fast_sampling():
            _, _, fast = network(X)
        assert all(torch.equal(a, b) for a, b in zip(fast, network(X)[2], strict=True))
