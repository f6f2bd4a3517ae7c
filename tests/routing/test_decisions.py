"""Which agent decides on what, what a decision leaves, and what it costs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import generator
from networks import ALGORITHMS, POLICIES, RELAXED, VALUES, PlainReinforce, Routed, assert_close, by_hand
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from routing_ext import routing
from routing_ext.routing import (
    CollaborationReward,
    Decision,
    Initialization,
    Loss,
    ManualReward,
    NegLossReward,
    PassThrough,
    PerTaskAssignment,
    RunningAverageCollaborationReward,
    Selection,
    replay,
)
from routing_ext.routing.decisions.gradient import GumbelSoftmaxSampling, entropy, make_samples, relaxed_pair

B, K, D = 12, 4, 6
X = torch.randn(B, D, generator=generator(0))
AGENTS = torch.tensor([0, 2] * 6)  # of 3
MASK = torch.arange(B) % 3 > 0


def make(algorithm: str | type[Decision], *args: Any, **kwargs: Any) -> Decision:
    torch.manual_seed(1)
    cls = getattr(routing, algorithm) if isinstance(algorithm, str) else algorithm
    decision: Decision = cls(*(args or (K, D)), **kwargs)
    return decision


def decide(decision: Decision, x: Tensor = X, **kwargs: Any) -> tuple[Tensor, Any, Tensor]:
    torch.manual_seed(2)
    result: tuple[Tensor, Any, Tensor] = decision(x, Initialization()(x)[1], **kwargs)
    return result


def weights(decision: Decision, storage: str = "_policy") -> list[nn.Parameter]:
    """The last layer of each agent."""
    return [s._approx._layers[-1].weight for s in getattr(decision, storage)]


class TestAgents:
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    def test_each_sample_asks_its_agent(self, algorithm: Any) -> None:
        """As if each agent were a layer of its own."""
        decision = make(algorithm, num_agents=3).eval()
        _, mxs, actions = decide(decision, prior_actions=AGENTS)
        for agent in (0, 2):
            alone = make(algorithm)
            for name in ("_policy", "_value_mem", "_qvalue_mem"):
                if hasattr(alone, name):
                    getattr(alone, name)[0].load_state_dict(getattr(decision, name)[agent].state_dict())
            its = agent == AGENTS
            _, own_mxs, own = decide(alone.eval(), X[its])
            assert torch.equal(actions[its], own)
            channels = 1 if algorithm == "RELAX" else None  # the others come of random numbers
            assert_close(mxs.batch_steps[0].states[its][:, :, :channels], own_mxs.batch_steps[0].states[:, :, :channels])

    @pytest.mark.parametrize("algorithm", [*POLICIES, *VALUES, PlainReinforce])
    def test_agents_without_samples_get_no_gradient(self, algorithm: Any) -> None:
        decision = make(algorithm, num_agents=3)
        ys, mxs, _ = decide(decision, prior_actions=AGENTS)
        loss = Loss(nn.MSELoss(), NegLossReward())
        torch.autograd.backward(loss(ys, mxs, X + 1)[1])
        assert [w.grad is None for w in weights(decision)] == [False, True, False]
        for name in ("_value_mem", "_qvalue_mem"):
            if hasattr(decision, name):
                assert [w.grad is None for w in weights(decision, name)] == [False, True, False]

    def test_agents_whose_samples_are_masked_get_no_gradient(self) -> None:
        decision = make("REINFORCE", num_agents=3)
        ys, mxs, _ = decide(decision, prior_actions=AGENTS, mask=AGENTS == 2)
        Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X + 1)[1].backward()
        assert [w.grad is None for w in weights(decision)] == [True, True, False]

    @pytest.mark.parametrize("prior", [AGENTS.view(-1, 1), AGENTS.int(), AGENTS.float()])
    def test_forms_of_prior_actions(self, prior: Tensor) -> None:
        decision = make("WPL", num_agents=3)
        assert torch.equal(decide(decision, prior_actions=prior)[2], decide(decision, prior_actions=AGENTS)[2])

    def test_prior_actions_do_not_matter_to_one_agent(self) -> None:
        decision = make("WPL")
        assert torch.equal(decide(decision, prior_actions=AGENTS + 7)[2], decide(decision)[2])

    @pytest.mark.parametrize("algorithm", ["WPL", PlainReinforce])
    def test_dispatching(self, algorithm: Any) -> None:
        """Decisions choose the agents of decisions, two levels deep."""
        torch.manual_seed(1)
        levels = nn.ModuleList(
            [make("REINFORCE", 2, D), make("QLearning", 3, D, num_agents=2), make(algorithm, K, D, num_agents=3)]
        )
        selection = Selection(*[nn.Linear(D, D) for _ in range(K)])
        ys, mxs, prior = Initialization()(X)
        for level in levels:
            ys, mxs, prior = level(ys, mxs, prior)
        assert [len(mx.steps) for mx in mxs] == [3] * B
        chosen = [step.actions for step in mxs.batch_steps]
        ys, mxs, _ = selection(ys, mxs, prior)
        module_loss, routing_loss = Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X, reduce=False)
        assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))
        routing_loss.mean().backward()
        for level, asked in zip(levels[1:], chosen, strict=False):
            assert [w.grad is not None for w in weights(level)] == [i in asked for i in range(level._num_agents)]

    def test_same_layer_three_times(self) -> None:
        network = Routed("SARSA", agents=2, repeated=True)
        assert len(list(network.decisions[0].parameters())) == len(list(network.decisions.parameters()))
        ys, mxs, _ = network(X, [0, 1] * 6)
        assert {step["loss_funcs"] for mx in mxs for step in mx.steps} == {network.decisions[0]._loss}
        module_loss, routing_loss = Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X, reduce=False)
        assert_close(routing_loss, by_hand(mxs, -module_loss.detach()))


class TestBatch:
    @pytest.mark.parametrize("algorithm", [*POLICIES, *VALUES, "RELAX", PlainReinforce])
    @pytest.mark.parametrize("mask", [None, MASK])
    def test_passes_through(self, algorithm: Any, mask: Any) -> None:
        x = X.clone().requires_grad_()
        decision = make(algorithm)
        assert decide(decision, x, mask=mask)[0] is x
        target = torch.ones(B, 2)
        assert decide(decision, x, mask=mask, update_target=target)[0] is target

    @pytest.mark.parametrize("mask", [None, MASK])
    @pytest.mark.parametrize("target", [None, torch.randn(B, 2, 3)])
    def test_gumbel_softmax(self, mask: Any, target: Any) -> None:
        decision = make("GumbelSoftmax", exploration=0.3)
        x = X if target is None else target
        ys, _mxs, actions = decide(decision, mask=mask, update_target=target)
        assert_close(ys, x)
        ys.sum().backward()
        torch.manual_seed(2)
        active = torch.ones(B, dtype=torch.bool) if mask is None else mask
        gumbel = -(-torch.rand(int(active.sum()), K).log()).log()
        logits = (decision._policy[0](X[active]) + gumbel) / (0.1 + 9.9 * 0.3)
        assert torch.equal(actions[active], logits.argmax(1))
        (weight,) = weights(decision)
        chosen = logits.softmax(1).gather(1, actions[active].unsqueeze(1)).view(-1)
        (expected,) = torch.autograd.grad((chosen * x[active].flatten(1).sum(1)).sum(), weight)
        assert_close(weight.grad, expected, 1e-4)

    @pytest.mark.parametrize("hard", [True, False])
    def test_gumbel_softmax_sampling(self, hard: bool) -> None:
        hooked: list[Tensor] = []
        sampling = GumbelSoftmaxSampling(0.7, hard, hooked.append)
        logits = torch.randn(B, K, generator=generator(3), requires_grad=True)
        torch.manual_seed(2)
        gumbel = -(-torch.rand(B, K).log()).log()
        relaxed = ((logits + gumbel) / 0.7).softmax(1)
        torch.manual_seed(2)
        samples = sampling(logits)
        assert_close(samples, nn.functional.one_hot(relaxed.argmax(1), K).float() if hard else relaxed)
        weights = torch.randn(B, K, generator=generator(4))
        (own,) = torch.autograd.grad((samples * weights).sum(), logits)
        (expected,) = torch.autograd.grad((relaxed * weights).sum(), logits, retain_graph=True)
        assert_close(own, expected)
        assert len(hooked) == 1
        torch.manual_seed(2)
        actions, factors = sampling.sample(logits)
        assert torch.equal(actions, relaxed.argmax(1, keepdim=True))
        assert_close(factors, torch.ones(B, 1))
        (own,) = torch.autograd.grad(factors.sum(), logits)
        (expected,) = torch.autograd.grad(relaxed.gather(1, actions).sum(), logits)
        assert_close(own, expected)

    def test_relaxed_samples(self) -> None:
        """What RELAX stores is of these."""
        logits = torch.randn(B, K, generator=generator(3))
        torch.manual_seed(2)
        first, second = torch.rand(2, B, K)
        torch.manual_seed(2)
        actions, relaxed, conditional = make_samples(logits, 0.5)
        scores = logits.log_softmax(1) - (-first.log()).log()
        assert torch.equal(actions, scores.argmax(1))
        assert_close(relaxed, (scores / 0.5).softmax(1))
        given, _, same = relaxed_pair(logits.log_softmax(1), 0.5, (first, second), actions)
        assert torch.equal(given, actions)
        assert_close(same, conditional)
        assert_close(entropy(logits.softmax(1)), torch.distributions.Categorical(logits=logits).entropy())

    def test_gumbel_softmax_in_evaluation(self) -> None:
        assert decide(make("GumbelSoftmax").eval())[0] is X

    def test_users_batch(self) -> None:
        class Doubling(PlainReinforce):
            def _forward(self, xs: Tensor, agent: int) -> Any:
                return 2 * xs * (agent + 1), *super()._forward(xs, agent)[1:]

        decision = make(Doubling, num_agents=3)
        expected = 2 * X * (AGENTS.unsqueeze(1) + 1)
        assert torch.equal(decide(decision, prior_actions=AGENTS)[0], expected)
        ys = decide(decision, prior_actions=AGENTS, mask=MASK)[0]
        assert torch.equal(ys, torch.where(MASK.unsqueeze(1), expected, X))

    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    @pytest.mark.parametrize("training", [True, False])
    def test_masked_samples(self, algorithm: Any, training: bool) -> None:
        """Take action 0 and leave nothing; the others decide as if they were alone, from the same random numbers."""
        decision = make(algorithm, num_agents=3).train(training)
        _, mxs, actions = decide(decision, prior_actions=AGENTS, mask=MASK)
        state = torch.get_rng_state()
        assert not actions[~MASK].any()
        assert [len(mx.steps) for mx in mxs] == MASK.int().tolist()
        assert torch.equal(actions, decide(decision, prior_actions=AGENTS, mask=MASK.byte())[2])
        _, own, alone = decide(decision, X[MASK], prior_actions=AGENTS[MASK])
        assert torch.equal(alone, actions[MASK])
        assert_close(mxs.batch_steps[0].states[MASK], own.batch_steps[0].states)
        assert torch.equal(mxs.batch_steps[0].is_exploratory[MASK], own.batch_steps[0].is_exploratory)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("policy_storage_type", ["approx", "tabular"])
    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    def test_masked_samples_ask_agents_of_no_other(self, algorithm: Any, policy_storage_type: str) -> None:
        """The agents of masked samples may come before, between and behind those that are asked."""
        agents = torch.tensor([0, 1, 2, 3, 4, 3, 1, 0, 1, 3, 2, 4])
        decision = make(algorithm, num_agents=5, policy_storage_type=policy_storage_type)
        for asked in ([1, 3], [0], [4], [0, 4]):
            mask = torch.isin(agents, torch.tensor(asked))
            ys, mxs, actions = decide(decision, X.clone().requires_grad_(), prior_actions=agents, mask=mask)
            _, own, alone = decide(decision, X[mask], prior_actions=agents[mask])
            assert torch.equal(actions[mask], alone)
            assert not actions[~mask].any()
            assert_close(mxs.batch_steps[0].states[mask], own.batch_steps[0].states)
            sum(Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X)).backward()

    @pytest.mark.parametrize("algorithm", [*ALGORITHMS, PlainReinforce])
    @pytest.mark.parametrize("size", [0, B])
    def test_nobody_decides(self, algorithm: Any, size: int) -> None:
        """All are masked, or there is no sample at all."""
        decision, x = make(algorithm, num_agents=3), X[:size]
        mask = torch.zeros(size, dtype=torch.bool)
        state = torch.get_rng_state()
        mxs = Initialization()(x)[1]
        ys, mxs, actions = decision(x, mxs, AGENTS[:size], mask if size else None)
        assert ys is x
        assert torch.equal(actions, torch.zeros(size, dtype=torch.int64))
        assert [mx.steps for mx in mxs] == [[]] * size
        assert torch.equal(torch.get_rng_state(), state)
        assert not Loss(nn.MSELoss(), NegLossReward())(ys, mxs, x, reduce=False)[1].any()
        with replay([actions]):
            assert decision(x, mxs, AGENTS[:size], mask if size else None, ys + 1)[0].equal(ys + 1)

    @pytest.mark.parametrize("algorithm", POLICIES)
    def test_exploratory_is_the_mode(self, algorithm: str) -> None:
        _, mxs, actions = decide(make(algorithm))
        (step,) = mxs.batch_steps
        assert torch.equal(step.is_exploratory, step.states[:, :, 0].argmax(1) == actions)

    @pytest.mark.parametrize("detach", [True, False])
    @pytest.mark.parametrize("algorithm", [*POLICIES, *VALUES, PlainReinforce])
    def test_detach(self, algorithm: Any, detach: bool) -> None:
        x = X.clone().requires_grad_()
        _, mxs, _ = decide(make(algorithm, num_agents=3, detach=detach), x, prior_actions=AGENTS)
        (gradient,) = torch.autograd.grad(mxs.batch_steps[0].states.square().sum(), x, allow_unused=True)
        assert (gradient is None) == detach


class TestStorages:
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_names(self, algorithm: str) -> None:
        """The reference's, for its saved models."""
        names = set(make(algorithm, num_agents=2, approx_hidden_dims=(5,)).state_dict())
        second = {
            "ActorCritic": ["_qvalue_mem"],
            "WPL": ["_qvalue_mem"],
            "REINFORCE": [],
            "EGreedyREINFORCE": [],
            "QLearning": [],
            "SARSA": [],
            "GumbelSoftmax": [],
        }.get(algorithm, ["_value_mem"])
        kinds = [f"_approx._layers.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")]
        assert names == {f"{storage}.{agent}.{kind}" for storage in ["_policy", *second] for agent in (0, 1) for kind in kinds}

    def test_widths(self) -> None:
        decision = make("AAC", approx_hidden_dims=(5, 7))
        shapes = [tuple(layer.weight.shape) for layer in decision._policy[0]._approx._layers]
        assert shapes == [(5, D), (7, 5), (K, 7)]
        assert decision._value_mem[0]._approx._layers[-1].weight.shape == (1, 7)
        assert make("RELAX")._value_mem[0]._approx._layers[0].weight.shape == (1, D + K)
        assert make("RELAX", K, (2, 3))._value_mem[0]._approx._layers[0].weight.shape == (1, 6 + K)

    @pytest.mark.parametrize("kind", ["tabular", 1])
    def test_tables(self, kind: Any) -> None:
        decision = make("ActorCritic", num_agents=3, policy_storage_type=kind)
        assert set(decision.state_dict()) == {f"{s}.{i}._approx" for s in ("_policy", "_qvalue_mem") for i in range(3)}
        assert torch.equal(decision._policy[1]._approx, torch.full((1, K), 1 / K))
        for i, storage in enumerate(decision._policy):
            storage._approx.data[0, 0] = float(i)
        _, mxs, _ = decide(decision, prior_actions=AGENTS, mask=MASK)
        states = mxs.batch_steps[0].states[MASK][:, :, 0]
        tables = torch.cat([storage._approx for storage in decision._policy]).log_softmax(1)
        assert_close(states, tables[AGENTS[MASK]])
        states.sum().backward()
        assert [storage._approx.grad is None for storage in decision._policy] == [False, True, False]

    @pytest.mark.parametrize("keyword", ["policy_net", "approx_module"])
    def test_networks_of_the_users_own(self, keyword: str) -> None:
        network = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, K))
        decision = make("ActorCritic", K, None, num_agents=2, **{keyword: network})
        own = [storage._approx for storage in [*decision._policy, *decision._qvalue_mem]]
        assert all(m is not network for m in own)
        assert len({id(p) for m in own for p in m.parameters()}) == 4 * 4
        for m in own:
            for name, p in m.state_dict().items():
                assert torch.equal(p, network.state_dict()[name])
        _, mxs, _ = decide(decision, prior_actions=AGENTS % 2)
        assert_close(mxs.batch_steps[0].states[:, :, 0], network(X).log_softmax(1))
        assert_close(mxs.batch_steps[0].states[:, :, 1], network(X))

    def test_networks_of_images(self) -> None:
        images = torch.randn(B, 2, 5, 5)
        network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, K))
        decision = make("REINFORCE", K, None, num_agents=3, policy_net=network)
        ys, mxs, _ = decide(decision, images, prior_actions=AGENTS, mask=MASK)
        assert ys is images
        assert_close(mxs.batch_steps[0].states[MASK][:, :, 0], network(images[MASK]).log_softmax(1))

    @pytest.mark.parametrize(
        ("keyword", "algorithm"), [("value_net", "AAC"), ("value_net", "REINFORCEBl1"), ("qvalue_net", "WPL")]
    )
    def test_critics_of_the_users_own(self, keyword: str, algorithm: str) -> None:
        width = 1 if algorithm == "AAC" else K
        network = nn.Linear(D, width)
        decision = make(algorithm, **{keyword: network})
        _, mxs, _ = decide(decision)
        assert_close(mxs.batch_steps[0].states[:, :, 1], network(X).expand(-1, K))

    @pytest.mark.parametrize("kind", ["forward", "pre", "global", "own forward"])
    @pytest.mark.parametrize("policy_storage_type", ["approx", "tabular"])
    def test_hooks(self, policy_storage_type: str, kind: str) -> None:
        """Of an agent's storage."""
        decision = make("REINFORCE", num_agents=3, policy_storage_type=policy_storage_type)
        storage, calls = decision._policy[2], []
        if kind == "own forward":
            storage.forward = lambda xs: calls.append(len(xs)) or xs[:, :K]
        elif kind == "pre":
            storage.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        elif kind == "forward":
            storage.register_forward_hook(lambda module, args, values: calls.append(len(values)))
        else:
            of_storage = lambda module, args, values: calls.append(len(values)) if module is storage else None  # noqa: E731
            handle = nn.modules.module.register_module_forward_hook(of_storage)
        _, mxs, _ = decide(decision, prior_actions=AGENTS)
        if kind == "global":
            handle.remove()
        assert calls == [6]
        if kind == "own forward":
            assert_close(mxs.batch_steps[0].states[AGENTS == 2][:, :, 0], X[AGENTS == 2][:, :K].log_softmax(1))

    def test_agents_of_several_kinds(self) -> None:
        decision = make("REINFORCE", num_agents=3)
        decision._policy[2] = make("REINFORCE", policy_storage_type="tabular")._policy[0]
        _, mxs, _ = decide(decision, prior_actions=AGENTS)
        states = mxs.batch_steps[0].states[:, :, 0]
        assert_close(states[AGENTS == 0], decision._policy[0](X[AGENTS == 0]).log_softmax(1))
        assert_close(states[AGENTS == 2], torch.full((6, K), 1 / K).log())

    def test_saved_and_loaded(self) -> None:
        network, other = Routed("WPL", agents=3), Routed("WPL", agents=3)
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue())))
        tasks = AGENTS.tolist()
        assert torch.equal(network.eval()(X, tasks)[0], other.eval()(X, tasks)[0])


class TestExploration:
    @pytest.mark.parametrize(
        ("algorithm", "exploration", "attribute", "value"),
        [
            ("QLearning", 0.5, "_exploration", 0.5),
            ("AAC", 0.5, "_exploration", 0.5),
            ("EGreedyAAC", 0.5, "_exploration", 0.5),
            ("EGreedyREINFORCE", 0.2, "_exploration", 0.6),
            ("EGreedyREINFORCE", 0.5, "_exploration", 1.0),
            ("REINFORCE", 0.5, "_pg_temperature", 1.0),
            ("RELAX", 0.5, "_temperature", 5.05),
        ],
    )
    def test_set_exploration(self, algorithm: str, exploration: float, attribute: str, value: float) -> None:
        decision = make(algorithm)
        decision.set_exploration(exploration)
        assert getattr(decision, attribute) == pytest.approx(value)

    def test_temperatures(self) -> None:
        decision = make("GumbelSoftmax", exploration=0.2)
        assert decision._gumbel_softmax._temperature == pytest.approx(0.1 + 9.9 * 0.2)
        decision.set_exploration(0.0)
        assert decision._gumbel_softmax._temperature == pytest.approx(0.1)

    @pytest.mark.parametrize("algorithm", ["REINFORCE", "ActorCritic"])
    def test_set_pg_temp(self, algorithm: str) -> None:
        decision = make(algorithm, set_pg_temp=True)
        decision.set_exploration(0.4)
        _, mxs, _ = decide(decision)
        logits = (decision._policy[0](X) / (0.1 + 9.9 * 0.4)).log_softmax(1)
        assert_close(mxs.batch_steps[0].states[:, :, 0], logits)

    @pytest.mark.parametrize("assignment", [PassThrough, PerTaskAssignment])
    def test_assignments_have_none(self, assignment: Any) -> None:
        assignment().set_exploration(0.5)

    @pytest.mark.parametrize("algorithm", VALUES)
    def test_bounds(self, algorithm: str) -> None:
        decision = make(algorithm, exploration=0.0)
        _, mxs, actions = decide(decision)
        greedy = mxs.batch_steps[0].states[:, :, 0].argmax(1)
        assert torch.equal(actions, greedy)
        assert not mxs.batch_steps[0].is_exploratory.any()
        decision.set_exploration(1.0)
        _, mxs, actions = decide(decision)
        assert mxs.batch_steps[0].is_exploratory.all()
        assert not torch.equal(actions, greedy)
        assert torch.equal(decide(decision.eval())[2], greedy)


class TestRewardArguments:
    def test_each_layer_has_its_own(self) -> None:
        assert make("WPL").additional_reward_func is not make("WPL").additional_reward_func

    def test_class_and_arguments(self) -> None:
        decision = make("WPL", additional_reward_class=CollaborationReward, additional_reward_args={"num_actions": K})
        assert isinstance(decision.additional_reward_func, CollaborationReward)
        assert decision.additional_reward_func._num_actions == K

    @pytest.mark.parametrize("keyword", ["additional_reward_func", "additional_reward_function"])
    def test_object(self, keyword: str) -> None:
        reward = ManualReward([0.0] * K)
        assert make("WPL", **{keyword: reward}).additional_reward_func is reward

    def test_registers_active_samples_in_order(self) -> None:
        decision = make("REINFORCE", num_agents=3, additional_reward_class=CollaborationReward)
        _, _, actions = decide(decision, prior_actions=AGENTS, mask=MASK)
        assert torch.equal(decision.additional_reward_func._latest, actions[MASK])


class TestErrors:
    def test_prior_actions_missing(self) -> None:
        for missing in (None, torch.zeros(0)):
            with pytest.raises(ValueError, match="WPL: prior_actions must say which of the 3 agents decides, got none"):
                decide(make("WPL", num_agents=3), prior_actions=missing)

    def test_prior_actions_of_another_length(self) -> None:
        with pytest.raises(ValueError, match="WPL: prior_actions must have 12 elements, one a sample, got 11"):
            decide(make("WPL", num_agents=3), prior_actions=AGENTS[1:])

    @pytest.mark.parametrize("agent", [-1, 3, 99])
    @pytest.mark.parametrize("algorithm", ["WPL", PlainReinforce])
    def test_agent_out_of_range(self, algorithm: Any, agent: int) -> None:
        agents = AGENTS.clone()
        agents[5] = agent
        name = algorithm if isinstance(algorithm, str) else algorithm.__name__
        with pytest.raises(RuntimeError, match=rf"{name}: prior_actions must be in \[0, 3\), got {agent} for sample 5"):
            decide(make(algorithm, num_agents=3), prior_actions=agents)

    def test_metas_of_another_length(self) -> None:
        with pytest.raises(ValueError, match="WPL: mxs must have one element for each of 12 samples, got 3"):
            make("WPL")(X, Initialization()(X[:3])[1])

    def test_mask_of_another_length(self) -> None:
        with pytest.raises(RuntimeError, match="mask"):
            decide(make("WPL"), mask=MASK[1:])

    def test_storage_type(self) -> None:
        with pytest.raises(ValueError, match="WPL: policy_storage_type must be approx or tabular, got 'deep'"):
            make("WPL", policy_storage_type="deep")

    def test_no_input_width(self) -> None:
        with pytest.raises(ValueError, match="in_features and num_selections must be given"):
            make("WPL", K, None)

    def test_no_selections(self) -> None:
        with pytest.raises(ValueError, match="WPL: num_selections must be at least 1, got 0"):
            make("WPL", 0, D)

    def test_misspelt(self) -> None:
        with pytest.warns(UserWarning, match="WPL ignores num_agent: it has no such arguments"):
            make("WPL", num_agent=2)

    def test_base_class(self) -> None:
        with pytest.raises(NotImplementedError, match="Decision has neither _forward nor _decide"):
            decide(make(Decision))

        class Silent(routing.REINFORCE):
            _losses = Decision._losses

        ys, mxs, _ = decide(make(Silent))
        with pytest.raises(NotImplementedError, match="Silent has neither _loss nor _losses"):
            Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X)


class TestLosses:
    """The formulas with a quirk or a correction, for one decision of each sample."""

    def losses(self, algorithm: str, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(routing loss [B], states of the actions [B, C], states [B, K, C], reward [B])``"""
        decision = make(algorithm, exploration=0.5, additional_reward_func=ManualReward([0.1, 0.2, 0.3, 0.4]), **kwargs)
        ys, mxs, actions = decide(decision)
        module_loss, routing_loss = Loss(nn.MSELoss(), NegLossReward())(
            ys, mxs, X + torch.arange(B).unsqueeze(1), reduce=False
        )
        states = mxs.batch_steps[0].states
        final = -module_loss.detach()
        return routing_loss, states[torch.arange(B), actions], states, final + (0.1 * (actions + 1)) * final.abs()

    def test_egreedy_reinforce(self) -> None:
        loss, taken, _, ret = self.losses("EGreedyREINFORCE")
        log_prob, prob, sampling = taken.unbind(1)
        assert_close(loss, -log_prob * ret * prob / sampling)
        kept, _, _, _ = self.losses("EGreedyREINFORCE", reference_broadcast=True)
        assert_close(kept, prob / sampling * (-log_prob * ret).sum())

    def test_egreedy_aac(self) -> None:
        loss, taken, _, ret = self.losses("EGreedyAAC")
        log_prob, prob, sampling, value = taken.unbind(1)
        advantage = ret - value
        assert_close(loss, -log_prob * advantage * prob / sampling + advantage.square().mean())
        kept, _, _, _ = self.losses("EGreedyAAC", reference_broadcast=True)
        assert_close(kept, prob / sampling * (-log_prob * advantage).sum() + B * advantage.square().mean())

    def test_bootstrap_aac(self) -> None:
        loss, taken, _, reward = self.losses("BootstrapAAC")
        advantage = reward - taken[:, 1]  # no next value after the last decision
        assert_close(loss, -taken[:, 0] * advantage + advantage.square().mean())

    def test_bootstrap_aac_between_decisions(self) -> None:
        network = Routed("BootstrapAAC", sizes=(K, K))
        ys, mxs, actions = network(X)
        module_loss, routing_loss = Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X, reduce=False)
        first, second = (step.states for step in mxs.batch_steps)
        advantages = second[:, 0, 1] - first[:, 0, 1], -module_loss.detach() - second[:, 0, 1]
        expected = sum(
            -states[torch.arange(B), action, 0] * advantage.detach() + advantage.square().mean()
            for states, action, advantage in zip((first, second), actions, advantages, strict=True)
        )
        assert_close(routing_loss, expected)

    def test_gradient_estimators_have_none(self) -> None:
        for algorithm in RELAXED:
            assert not self.losses(algorithm)[0].any()

    def test_relax_in_evaluation(self) -> None:
        network = Routed("RELAX").eval()
        with torch.no_grad():
            ys, mxs, _ = network(X)
            assert Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X)[1] == 0

    def test_relax_adds_to_gradients(self) -> None:
        found = []
        for times in (1, 2):
            torch.manual_seed(1)
            network = Routed("RELAX")
            for _ in range(times):
                torch.manual_seed(2)
                ys, mxs, _ = network(X)
                Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X)
            found.append([p.grad for p in network.decisions.parameters()])
        for once, twice in zip(*found, strict=True):
            assert_close(twice, 2 * once)


class CountsOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class TestCost:
    """What a step does on the host does not grow with the batch, as long as the same agents and modules take part."""

    def operators(self, network: Routed, batch: int, masked: bool, drawn: bool) -> int:
        cycle = torch.arange(batch)
        x, tasks, target = torch.randn(batch, D), cycle % 3, cycle % D
        masks: Sequence[Tensor] | None = None
        if masked:
            masks = [cycle % 7 != i for i in range(3)]
        actions = [cycle // 3 % K] * 3
        loss = Loss(nn.CrossEntropyLoss(), NegLossReward())

        def step() -> Any:
            ys, mxs, _ = network(x, tasks, masks)
            sum(loss(ys, mxs, target)).backward()
            return mxs

        network.zero_grad()
        torch.manual_seed(0)
        with CountsOperators() as operators:
            if drawn:
                mxs = step()
                assert all(len(s.actions.unique()) == K for s in mxs.batch_steps)
            else:
                with replay(actions):
                    step()
        return operators.count

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("reward", [CollaborationReward, RunningAverageCollaborationReward, None])
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_replayed(self, algorithm: str, reward: Any, masked: bool) -> None:
        network = Routed(algorithm, agents=3, reward=reward and (lambda size: reward(0.1, size)))
        self.operators(network, 24, masked, drawn=False)  # the histories start
        counts = [self.operators(network, batch, masked, drawn=False) for batch in (24, 240)]
        assert counts[0] == counts[1] < 2000

    @pytest.mark.parametrize("policy_storage_type", ["approx", "tabular"])
    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_drawn(self, algorithm: str, policy_storage_type: str) -> None:
        network = Routed(algorithm, agents=3, exploration=1.0, policy_storage_type=policy_storage_type)
        counts = [self.operators(network, batch, False, drawn=True) for batch in (300, 900)]
        assert counts[0] == counts[1] < 2000

    def test_slow_path_grows(self) -> None:
        """So that these tests would see it."""

        class Own(ManualReward):
            def get_reward(self, dist: Tensor, action: Tensor) -> Tensor:
                return super().get_reward(dist, action)

        network = Routed("WPL", agents=3, reward=lambda size: Own([0.0] * size))
        assert self.operators(network, 240, False, drawn=False) > 2 * self.operators(network, 24, False, drawn=False)
