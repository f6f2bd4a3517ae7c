"""The joint loss, against the reference's rules written out sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import generator
from networks import (
    ALGORITHMS,
    PlainReinforce,
    Routed,
    assert_close,
    assert_gradients_close,
    by_hand,
    parameter_gradients,
)
from torch import Tensor, nn

from routing_ext import routing
from routing_ext.routing import (
    BaseReward,
    CollaborationReward,
    CorrectClassifiedReward,
    Initialization,
    Loss,
    ManualReward,
    NegLossReward,
    PassThrough,
    PerActionBaseReward,
    PerTaskAssignment,
    RunningAverageCollaborationReward,
    SampleMetaInformation,
    Selection,
)

B = 8
TASKS = [0, 2, 0, 0, 2, 2, 0, 2]  # agent 1 of 3 has no samples
ALL = [torch.ones(B, dtype=torch.bool)] * 3
ENDING = [torch.tensor(mask).bool() for mask in ([1] * 8, [1, 1, 0, 1, 0, 1, 1, 1], [0, 1, 0, 1, 0, 0, 0, 1])]
PAUSING = [
    torch.tensor(mask).bool() for mask in ([0, 1, 1, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1, 1, 0])
]
MASKS = {"no mask": None, "all active": ALL, "early termination": ENDING, "pauses": PAUSING}
SHAPES = {
    "alike": {"sizes": (4, 4, 4)},
    "first alike": {"sizes": (4, 4, 3)},
    "outer alike": {"sizes": (4, 3, 4)},
    "all different": {"sizes": (2, 4, 3)},
    "repeated": {"repeated": True},
}
REWARDS = {
    "none": None,
    "manual": lambda size: ManualReward([0.3 * i - 0.4 for i in range(size)]),
    "collaboration": lambda size: CollaborationReward(0.3, size, 7),
    "running average": lambda size: RunningAverageCollaborationReward(0.3, size, 7),
}

X = torch.randn(B, 6, generator=generator(0))
TARGET = torch.arange(B) % 6


def networks(algorithm: str, agents: int = 3, reward: str = "manual", **kwargs: Any) -> list[Routed]:
    """Twice the same."""
    both = []
    for _ in range(2):
        torch.manual_seed(1)
        both.append(Routed(algorithm, agents=agents, reward=REWARDS[reward], exploration=0.4, **kwargs))
    return both


def same_by_hand(both: Sequence[Routed], masks: Any, normalize: bool = True, final: type[BaseReward] = NegLossReward) -> None:
    """The loss and the gradients of two batches after one another, against :func:`networks.by_hand`."""
    fast, slow = both
    loss = Loss(nn.CrossEntropyLoss(), final(), normalize_per_action_rewards=normalize)
    for seed in range(2):
        torch.manual_seed(seed)
        ys, mxs, _ = fast(X, TASKS, masks)
        module_loss, routing_loss = loss(ys, mxs, TARGET, reduce=False)
        (module_loss.mean() + routing_loss.mean()).backward()

        torch.manual_seed(seed)
        ys, mxs, _ = slow(X, TASKS, masks)
        losses = F.cross_entropy(ys, TARGET, reduction="none")
        rewards = -losses.detach() if final is NegLossReward else 2.0 * (ys.argmax(1) == TARGET) - 1.0
        expected = by_hand(mxs, rewards, normalize)
        (losses.mean() + expected.mean()).backward()

        assert_close(module_loss, losses)
        assert_close(routing_loss, expected)
        assert_gradients_close(parameter_gradients(fast), parameter_gradients(slow), 1e-4)


class TestByHand:
    @pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_algorithms(self, algorithm: str, masks: Any) -> None:
        same_by_hand(networks(algorithm), masks)

    @pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    @pytest.mark.parametrize("algorithm", ["QLearning", "AAC", "WPL", "SARSA"])
    def test_layers(self, algorithm: str, shape: dict[str, Any], masks: Any) -> None:
        same_by_hand(networks(algorithm, **shape), masks)

    @pytest.mark.parametrize("masks", [None, PAUSING], ids=["no mask", "pauses"])
    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("final", [NegLossReward, CorrectClassifiedReward])
    @pytest.mark.parametrize("reward", REWARDS)
    def test_rewards(self, reward: str, final: type[BaseReward], normalize: bool, masks: Any) -> None:
        same_by_hand(networks("ActorCritic", reward=reward), masks, normalize, final)

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    @pytest.mark.parametrize("policy_storage_type", ["approx", "tabular"])
    def test_storages(self, algorithm: str, policy_storage_type: str) -> None:
        for agents in (1, 3):
            same_by_hand(
                networks(algorithm, agents, policy_storage_type=policy_storage_type, approx_hidden_dims=(5, 4)), ENDING
            )

    @pytest.mark.parametrize("algorithm", ["EGreedyREINFORCE", "EGreedyAAC"])
    @pytest.mark.parametrize("reference_broadcast", [True, False])
    def test_kept_accident(self, algorithm: str, reference_broadcast: bool) -> None:
        same_by_hand(networks(algorithm, reference_broadcast=reference_broadcast), PAUSING)

    @pytest.mark.parametrize("kind", ["trajectory", "list of its samples", "plain"])
    @pytest.mark.parametrize("discounting", [1.0, 0.6, 0.0])
    def test_discounting(self, kind: str, discounting: float) -> None:
        network, _ = networks("REINFORCE")
        plain = [SampleMetaInformation(task) for task in TASKS]
        ys, mxs, _ = network(X, TASKS, PAUSING, plain if kind == "plain" else None)
        loss = Loss(nn.CrossEntropyLoss(), NegLossReward(), discounting=discounting)
        module_loss, routing_loss = loss(ys, list(mxs) if kind == "list of its samples" else mxs, TARGET, reduce=False)
        assert_close(routing_loss, by_hand(mxs, -module_loss.detach(), discounting=discounting))

    def test_layers_of_several_algorithms(self) -> None:
        both = networks("QLearning")
        for network in both:
            network.decisions[1] = networks("AAC")[0].decisions[1]
            network.decisions[2] = networks("RELAX")[0].decisions[2]
        same_by_hand(both, ENDING)

    def test_one_reward_of_all_layers(self) -> None:
        both = networks("WPL")
        for network in both:
            shared = CollaborationReward(0.3, 4, 13)
            for decision in network.decisions:
                decision.additional_reward_func = shared
        same_by_hand(both, PAUSING)

    def test_samples_without_any_decision(self) -> None:
        none, some = torch.zeros(B, dtype=torch.bool), torch.arange(B) > 3
        network, _ = networks("REINFORCE")
        for masks in ([some] * 3, [some, some.logical_not(), some], [some, none, some], [none] * 3):
            ys, mxs, _ = network(X, TASKS, masks)
            module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET, reduce=False)
            assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))
            assert torch.equal(routing_loss != 0, masks[0] | masks[1])


class PlainFinal(BaseReward):
    """As a user of the reference would write it: for one sample."""

    def forward(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
        assert loss.shape == (1,)
        assert yest.shape == (1, 6)
        assert ytrue.shape == (1,)
        return -self._scale * loss.detach().squeeze() * (1 + ytrue.float())


class PlainPerAction(PerActionBaseReward):
    def __init__(self) -> None:
        super().__init__()
        self.registered: list[int] = []
        self.asked = 0

    def register(self, dist: Tensor, action: Tensor) -> None:
        assert dist.shape == (1, 4, 5)
        assert action.shape == ()
        self.registered.append(int(action))

    def get_reward(self, dist: Tensor, action: Tensor) -> Tensor:
        assert dist.shape == (1, 4, 5)
        self.asked += 1
        return dist[0, action, 0].detach() * 0.1 + len(self.registered) + self.registered.count(int(action))

    def clear(self) -> None:
        self.registered = []


class HalfTheCollaboration(CollaborationReward):
    def get_reward(self, dist: Tensor, action: Tensor) -> Tensor:
        return super().get_reward(dist, action) / 2


class TestUsersClasses:
    @pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
    @pytest.mark.parametrize("agents", [1, 3])
    def test_decision(self, agents: int, masks: Any) -> None:
        """The reference's contract, and the same results as the vectorised class."""
        ours, theirs = (Routed(kind, agents=agents, reward=REWARDS["collaboration"]) for kind in ("REINFORCE", PlainReinforce))
        theirs.load_state_dict(ours.state_dict())
        loss = Loss(nn.CrossEntropyLoss(), NegLossReward())
        results = []
        for network in (ours, theirs):
            torch.manual_seed(2)
            for _ in range(2):
                ys, mxs, actions = network(X, TASKS, masks)
                module_loss, routing_loss = loss(ys, mxs, TARGET, reduce=False)
            (module_loss.mean() + routing_loss.mean()).backward()
            states = [torch.cat([step["states"] for step in mx.steps]) for mx in mxs if mx.steps]
            results.append(([ys, routing_loss, *actions, *states, torch.get_rng_state()], parameter_gradients(network)))
        for mine, plain in zip(results[0][0], results[1][0], strict=True):
            assert_close(mine.double(), plain.double())
        assert_gradients_close(results[0][1], results[1][1])
        for i, decision in enumerate(theirs.decisions):
            active = TASKS if masks is None else [task for task, is_active in zip(TASKS, masks[i], strict=True) if is_active]
            present = sorted(set(active)) if agents > 1 else [0]
            sizes = [active.count(agent) if agents > 1 else len(active) for agent in present]
            assert decision.agents_asked == list(zip(present, sizes, strict=True)) * 2
            assert decision.loss_calls == [(len(active), 4, 5)] * 2, "one call with all decisions, of 5 channels"

    def test_decision_in_evaluation(self) -> None:
        ours, theirs = (Routed(kind, agents=3).eval() for kind in ("REINFORCE", PlainReinforce))
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours(X, TASKS)[0], theirs(X, TASKS)[0])

    def test_loss_only(self) -> None:
        class Doubled(routing.WPL):
            def _loss(self, *args: Any) -> Tensor:
                assert args[1].shape == args[2].shape == (B, 4, 5)
                assert args[0].dtype is torch.bool
                return 2 * super()._loss(*args)

        ours, theirs = (Routed(kind, reward=REWARDS["manual"]) for kind in ("WPL", Doubled))
        theirs.load_state_dict(ours.state_dict())
        losses = []
        for network in (ours, theirs):
            torch.manual_seed(2)
            ys, mxs, _ = network(X)
            losses.append(Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET, reduce=False)[1])
        assert_close(losses[1], 2 * losses[0])

    def test_loss_of_several_columns(self) -> None:
        """The reference sums a decision's row."""

        class Rows(routing.REINFORCE):
            def _loss(self, *args: Any) -> Tensor:
                return super()._loss(*args).unsqueeze(1) * torch.ones(1, B)

        network = Routed(Rows, sizes=(4,))
        ys, mxs, _ = network(X)
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET, reduce=False)
        log_prob = torch.stack([mx.steps[0]["states"][0, mx.steps[0]["actions"], 0] for mx in mxs])
        assert_close(routing_loss, B * log_prob * module_loss.detach())

    def test_number_of_the_agent(self) -> None:
        """A tensor, as in the reference."""

        class Asks(PlainReinforce):
            def _forward(self, xs: Tensor, agent: Any) -> Any:
                assert agent.dtype is torch.int64
                assert agent.shape == ()
                return super()._forward(xs, agent.item())

        network = Routed(Asks, agents=3)
        network(X, TASKS)
        assert network.decisions[0].agents_asked == [(0, 4), (2, 4)]

    def test_static_loss_of_layers_of_several_sizes(self) -> None:
        class Static(routing.REINFORCE):
            @staticmethod
            def _loss(is_terminal, state, next_state, action, next_action, reward, cum_return, final_reward):  # type: ignore
                return state[:, :, 0].sum(1) * cum_return

        network = Routed(Static, sizes=(4, 3, 2))
        ys, mxs, _ = network(X)
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET, reduce=False)
        sums = torch.stack([sum(step["states"][0, :, 0].sum() for step in mx.steps) for mx in mxs])
        assert_close(routing_loss, -sums * module_loss.detach())

    def test_final_reward(self) -> None:
        network, _ = networks("REINFORCE")
        ys, mxs, _ = network(X, TASKS, ENDING)
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), PlainFinal(2.0))(ys, mxs, TARGET, reduce=False)
        assert_close(routing_loss, by_hand(mxs, -2.0 * module_loss.detach() * (1 + TARGET)))

    def test_final_reward_is_any_callable(self) -> None:
        network, _ = networks("REINFORCE")
        ys, mxs, _ = network(X, TASKS)
        routing_loss = Loss(nn.CrossEntropyLoss(), lambda loss, yest, ytrue: yest.sum().detach())(
            ys, mxs, TARGET, reduce=False
        )[1]
        assert_close(routing_loss, by_hand(mxs, ys.sum(1).detach()))

    @pytest.mark.parametrize("masks", [None, ENDING, PAUSING])
    def test_per_action_reward(self, masks: Any) -> None:
        network = Routed("REINFORCE", agents=3, reward=lambda size: PlainPerAction())
        ys, mxs, actions = network(X, TASKS, masks)
        for i, decision in enumerate(network.decisions):
            taken = actions[i] if masks is None else actions[i][masks[i]]
            assert decision.additional_reward_func.registered == taken.tolist()
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET, reduce=False)
        for decision in network.decisions:
            reward = decision.additional_reward_func
            assert reward.asked == len(reward.registered), "only for decisions that were made"
        assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))

    def test_per_action_reward_from_ours(self) -> None:
        network = Routed("REINFORCE", reward=lambda size: HalfTheCollaboration(0.5, size))
        ys, mxs, _ = network(X)
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET, reduce=False)
        assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))


class TestArguments:
    def test_module_losses_of_rows(self) -> None:
        network, _ = networks("REINFORCE")
        ys, mxs, _ = network(X, TASKS)
        module_loss = Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X, reduce=False)[0]
        assert_close(module_loss, (ys - X).square().sum(1))

    def test_module_losses_of_several_dimensions(self) -> None:
        """As for images: the sum of all of a sample's."""
        network, _ = networks("REINFORCE")
        ys, mxs, _ = network(X, TASKS)
        targets = torch.randint(3, (B, 2), generator=generator(3))
        module_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys.view(B, 3, 2), mxs, targets, reduce=False)[0]
        assert_close(module_loss, F.cross_entropy(ys.view(B, 3, 2), targets, reduction="none").sum(1))
        whole = Loss(lambda ysest, ystrue: (ysest - ystrue).square().view(B, 3, 2), NegLossReward())(ys, mxs, X, reduce=False)[
            0
        ]
        assert_close(whole, (ys - X).square().sum(1))

    def test_order_of_the_reference_readme(self) -> None:
        network, _ = networks("REINFORCE")
        ys, mxs, _ = network(X, TASKS)
        loss = Loss(nn.CrossEntropyLoss(), NegLossReward())
        for samples in (mxs, list(mxs)):
            assert loss(ys, TARGET, samples) == loss(ys, samples, TARGET)

    def test_one_loss_for_all(self) -> None:
        loss = Loss(lambda ysest, ystrue: (ysest - ystrue).square().mean(), NegLossReward())
        with pytest.raises(ValueError, match="Loss: pytorch_loss_func must return a loss for each sample, got one number"):
            loss(X, Initialization()(X)[1], X)

    def test_any_callable_and_reduction(self) -> None:
        network, _ = networks("REINFORCE")
        ys, mxs, _ = network(X, TASKS)
        criterion = nn.CrossEntropyLoss()
        separate = Loss(criterion, NegLossReward())(ys, mxs, TARGET, reduce=False)
        assert criterion.reduction == "none"
        loss = Loss(lambda ysest, ystrue: F.cross_entropy(ysest, ystrue, reduction="none"), NegLossReward())
        torch.testing.assert_close(loss(ys, mxs, TARGET), (separate[0].mean(), separate[1].mean()))

    @pytest.mark.parametrize("with_targets", [True, False])
    def test_external_losses(self, with_targets: bool) -> None:
        network, _ = networks("REINFORCE")
        ys, mxs, _ = network(X, TASKS)
        given = (ys - 1).square().view(B, 2, 3)
        loss = Loss(nn.CrossEntropyLoss(), NegLossReward())
        targets = {"ystrue": TARGET} if with_targets else {}
        module_loss, routing_loss = loss(ys, mxs, external_losses=given, reduce=False, **targets)
        assert_close(module_loss, given.sum((1, 2)))
        assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))

    def test_external_losses_and_classes(self) -> None:
        network, _ = networks("REINFORCE")
        ys, mxs, _ = network(X, TASKS)
        loss = Loss(nn.CrossEntropyLoss(), CorrectClassifiedReward())
        assert_close(loss(ys, mxs, TARGET, torch.ones(B), reduce=False)[1], by_hand(mxs, 2.0 * (ys.argmax(1) == TARGET) - 1.0))
        with pytest.raises(ValueError, match="Loss: ystrue must be given for CorrectClassifiedReward, got None"):
            loss(ys, mxs, external_losses=torch.ones(B))

    @pytest.mark.parametrize("clear", [True, False])
    @pytest.mark.parametrize("kind", ["trajectory", "plain"])
    def test_clear(self, clear: bool, kind: str) -> None:
        network, _ = networks("REINFORCE", reward="collaboration")
        mxs = [SampleMetaInformation(task) for task in TASKS] if kind == "plain" else None
        ys, mxs, _ = network(X, TASKS, mxs=mxs)
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward(), clear=clear)(ys, mxs, TARGET, reduce=False)
        if not clear:
            assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))
        for decision in network.decisions:
            assert (decision.additional_reward_func._latest is None) == clear

    def test_nothing_given(self) -> None:
        with pytest.raises(ValueError, match="Loss: ystrue or external_losses must be given, got neither"):
            Loss(nn.MSELoss(), NegLossReward())(X, Initialization()(X)[1])

    @pytest.mark.parametrize(("ysest", "mys", "ystrue"), [(B, B - 1, B), (B, B + 1, B)])
    def test_lengths(self, ysest: int, mys: int, ystrue: int) -> None:
        mxs = Initialization()(torch.ones(mys, 1))[1]
        with pytest.raises(ValueError, match=f"Loss: losses, mys, ysest and ystrue must have one element a sample, .*{mys}"):
            Loss(nn.MSELoss(), NegLossReward())(torch.ones(ysest, 2), mxs, torch.ones(ystrue, 2))


class TestWithoutDecisions:
    @pytest.mark.parametrize("assignment", [PerTaskAssignment, PassThrough])
    @pytest.mark.parametrize("kind", ["trajectory", "plain"])
    def test_routing_loss_is_zero(self, assignment: Any, kind: str) -> None:
        selection = Selection(*[nn.Linear(6, 6) for _ in range(3)])
        _, mxs, _ = Initialization()(X, TASKS)
        if kind == "plain":
            mxs = [SampleMetaInformation(task) for task in TASKS]
        ys, mxs, actions = assignment(3, None, policy_net=None)(X, mxs)
        assert actions.tolist() == (TASKS if assignment is PerTaskAssignment else [0] * B)
        ys, mxs, _ = selection(ys, mxs, actions)
        loss = Loss(nn.CrossEntropyLoss(), NegLossReward())
        module_loss, routing_loss = loss(ys, mxs, TARGET, reduce=False)
        assert torch.equal(routing_loss, torch.zeros(B))
        module_loss, routing_loss = loss(ys, mxs, TARGET)
        assert routing_loss == 0
        (module_loss + routing_loss).backward()
        assert selection._submodules[0].weight.grad is not None
        assert selection._submodules[1].weight.grad is None

    def test_task_missing(self) -> None:
        with pytest.raises(ValueError, match="PerTaskAssignment: mxs must have a task for each sample"):
            PerTaskAssignment()(X, Initialization()(X)[1])


class TestDtypes:
    @pytest.mark.parametrize("policy_storage_type", ["approx", "tabular"])
    @pytest.mark.parametrize("kind", ["trajectory", "plain"])
    def test_float64_and_rewards_of_float32(self, policy_storage_type: str, kind: str) -> None:
        """CorrectClassifiedReward is 1 or -1 of float32: no loss is rounded to that."""
        network = Routed("ActorCritic", policy_storage_type=policy_storage_type).double()
        plain = [SampleMetaInformation(task) for task in TASKS] if kind == "plain" else None
        ys, mxs, _ = network(X.double(), TASKS, mxs=plain)
        routing_loss = Loss(nn.CrossEntropyLoss(), CorrectClassifiedReward())(ys, mxs, TARGET, reduce=False)[1]
        assert routing_loss.dtype is torch.float64
        assert_close(routing_loss, by_hand(mxs, 2.0 * (ys.argmax(1) == TARGET).double() - 1.0), 1e-12)

    @pytest.mark.parametrize("masks", [None, PAUSING])
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_float64(self, algorithm: str, masks: Any) -> None:
        results = []
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(1)
            network = Routed(algorithm, agents=3, reward=REWARDS["collaboration"]).to(dtype)
            torch.manual_seed(2)
            with routing.replay([torch.tensor([0, 1, 2, 3, 1, 0, 2, 2])] * 3):
                ys, mxs, _ = network(X.to(dtype), TASKS, masks)
            losses = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET, reduce=False)
            assert ys.dtype is losses[0].dtype is losses[1].dtype is dtype
            (losses[0] + losses[1]).mean().backward()
            gradients = parameter_gradients(network)
            results.append((losses, {k: None if g is None else g.double() for k, g in gradients.items()}))
        for single, double in zip(results[0][0], results[1][0], strict=True):
            assert_close(single.double(), double, 1e-4)
        if algorithm != "WPL":  # the gradient of the least preferred action cancels but for the rounding of terms of 1e6
            assert_gradients_close(results[0][1], results[1][1], 2e-4)

    @pytest.mark.parametrize("masks", [None, PAUSING])
    @pytest.mark.parametrize("policy_storage_type", ["approx", "tabular"])
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    def test_bfloat16_autocast(self, algorithm: Any, policy_storage_type: str, masks: Any) -> None:
        results = []
        for enabled in (False, True):
            torch.manual_seed(1)
            network = Routed(algorithm, agents=3, reward=REWARDS["manual"], policy_storage_type=policy_storage_type)
            torch.manual_seed(2)
            actions = [torch.tensor([0, 1, 2, 3, 1, 0, 2, 2])] * 3
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled), routing.replay(actions):
                ys, mxs, _ = network(X, TASKS, masks)
                losses = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET, reduce=False)
            (losses[0] + losses[1]).mean().backward()
            results.append([*losses, *(p.grad for p in network.parameters() if p.grad is not None)])
        assert len(results[0]) == len(results[1])
        for rounded in results[1]:
            assert rounded.dtype is torch.float32
            assert rounded.isfinite().all()
        for exact, rounded in zip(results[0][:2], results[1][:2], strict=True):
            assert_close(rounded, exact, 0.05)

    @pytest.mark.parametrize("policy_storage_type", ["approx", "tabular"])
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    def test_bfloat16_parameters(self, algorithm: Any, policy_storage_type: str) -> None:
        network = Routed(algorithm, agents=3, reward=REWARDS["collaboration"], policy_storage_type=policy_storage_type)
        ys, mxs, _ = network.bfloat16()(X.bfloat16(), TASKS)
        assert ys.dtype is torch.bfloat16
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET)
        assert routing_loss.dtype is torch.float32
        (module_loss + routing_loss).backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)

    def test_drawn_under_autocast(self) -> None:
        network = Routed("WPL", agents=3)
        with torch.autocast("cpu", torch.bfloat16):
            _, mxs, actions = network(X, TASKS)
        assert all(int(a.min()) >= 0 and int(a.max()) < 4 for a in actions)
        torch.testing.assert_close(mxs.batch_steps[0].states[:, :, 0].exp().sum(1), torch.ones(B))


class TestSmallest:
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    @pytest.mark.parametrize("masks", [None, [torch.tensor([True])] * 3])
    def test_batch_of_one(self, algorithm: Any, masks: Any) -> None:
        network = Routed(algorithm, agents=3, reward=REWARDS["collaboration"])
        ys, mxs, _ = network(X[:1], [2], masks)
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET[:1], reduce=False)
        assert ys.shape == (1, 6)
        assert module_loss.shape == routing_loss.shape == (1,)
        (module_loss + routing_loss).sum().backward()
        asked = {name.split(".")[3] for name, g in parameter_gradients(network).items() if g is not None and "_policy" in name}
        assert asked <= {"2"}

    @pytest.mark.parametrize("exploration", [0.1, 1.0])
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_one_module(self, algorithm: str, exploration: float) -> None:
        network = Routed(algorithm, sizes=(1, 1, 1), exploration=exploration)
        ys, mxs, actions = network(X)
        assert not torch.stack(actions).any()
        module_loss, routing_loss = Loss(nn.CrossEntropyLoss(), NegLossReward())(ys, mxs, TARGET)
        (module_loss + routing_loss).backward()
        assert routing_loss.isfinite()
