"""Whether routed networks learn here as they do in the reference, and how long it takes: accuracy over seeds and time.

    python -m benchmarks.learn_routing --reference DIR

Ten tasks, "is it the digit t?", on 5,000 images of MNIST. A network sees an image, not its task: only its route tells which
question is asked. Both sides have the same network, weights, batches, optimisers and seeds, and train by turns. Writes
``benchmarks/results/learning-routing.json``; ``python -m benchmarks.make_readme`` makes table and figure of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import results
from benchmarks.machine import describe_machine
from benchmarks.routed_networks import RoutedNetwork, our_layers, reference_layers
from routing_ext.tasks import MultiTaskImages, mnist5k


class Settings(NamedTuple):
    epochs: int = 4
    batch_size: int = 32
    modules: int = 10
    widths: tuple[int, ...] = (14 * 14, 48, 48, 2)
    # Of the modules' SGD, which does not magnify rounding as Adam does. Large: few samples of a batch concern one module.
    lr: float = 1.0


class Method(NamedTuple):
    decision: str
    reward: str | None  # of the result
    lr: float  # of the decisions


METHODS = {
    "WPL": Method("WPL", "NegLossReward", 1.0),
    # With NegLossReward it learns as well, but stays undecided for longer, and magnifies rounding until a choice differs.
    "REINFORCE": Method("REINFORCE", "CorrectClassifiedReward", 30.0),
    "per-task assignment": Method("PerTaskAssignment", None, 0.0),
}
SETTINGS = Settings()
EVALUATIONS = 20

Examples = tuple[Tensor, list[int], Tensor]  # pixels [B, 196], tasks, labels [B]


def batches(data: MultiTaskImages, size: int, generator: torch.Generator | None = None) -> Iterator[Examples]:
    for images, labels, tasks in data.batches(size, shuffle=generator is not None, generator=generator):
        yield F.avg_pool2d(images, 2).flatten(1), tasks.tolist(), labels


class Study:
    """Trains networks with one of the methods, of whoever's layers.

    Args:
        method: a key of METHODS.
        epochs: of training.
    """

    def __init__(self, method: str, epochs: int) -> None:
        self.method, self.epochs = method, epochs
        self.train_data, self.test_data = mnist5k()
        ((self.pixels, self.tasks, self.labels),) = batches(self.test_data, len(self.test_data))

    def network(self, layers: SimpleNamespace) -> RoutedNetwork:
        method, modules, widths = METHODS[self.method], SETTINGS.modules, SETTINGS.widths
        network = RoutedNetwork(layers, method.decision, num_modules=modules, num_agents=modules, widths=widths)
        if method.reward is not None:
            network.loss = layers.Loss(nn.CrossEntropyLoss(), getattr(layers, method.reward)())
        return network

    def loss(self, network: RoutedNetwork, examples: Examples) -> Tensor:
        pixels, tasks, labels = examples
        ys, meta = network(pixels, tasks)
        if METHODS[self.method].reward is None:  # the reference's Loss needs a decision that learns
            return F.cross_entropy(ys, labels)
        module_loss, routing_loss = network.loss(ys, meta, labels)
        loss: Tensor = module_loss + routing_loss
        return loss

    @torch.no_grad()
    def test_accuracy(self, network: RoutedNetwork) -> float:
        network.eval()
        ys, _ = network(self.pixels, self.tasks)
        network.train()
        return float((ys.argmax(1) == self.labels).float().mean())

    def train(self, layers: SimpleNamespace, seed: int) -> tuple[dict[str, Any], list[Tensor]]:
        """The curve, and the actions int64 ``[3, B]`` of each step. Drawing and evaluating do not count as time."""
        torch.manual_seed(seed)
        network = self.network(layers)
        groups = [
            {"params": list(network.selections.parameters()), "lr": SETTINGS.lr},
            {"params": list(network.decisions.parameters()), "lr": METHODS[self.method].lr},
        ]
        optimizer = torch.optim.SGD([group for group in groups if group["params"]])
        taken: list[Tensor] = []  # [B] a decision
        for decision in network.decisions:
            decision.register_forward_hook(lambda module, _, output: taken.append(output[2]) if module.training else None)
        order = torch.Generator().manual_seed(seed)
        examples = [b for _ in range(self.epochs) for b in batches(self.train_data, SETTINGS.batch_size, order)]

        steps, seconds, accuracy = [0], [0.0], [self.test_accuracy(network)]
        busy = cpu = 0.0
        for part in torch.arange(len(examples)).chunk(EVALUATIONS):
            wall, thread = time.perf_counter(), time.thread_time()
            for i in part.tolist():
                self.loss(network, examples[i]).backward()
                optimizer.step()
                optimizer.zero_grad()
            busy += time.perf_counter() - wall
            cpu += time.thread_time() - thread
            steps.append(steps[-1] + len(part))
            seconds.append(round(busy, 4))
            accuracy.append(self.test_accuracy(network))
        depth = len(network.decisions)
        actions = [torch.stack(taken[i : i + depth]) for i in range(0, len(taken), depth)]
        return {"steps": steps, "seconds": seconds, "accuracy": accuracy, "waited": round(1 - cpu / busy, 3)}, actions


def run(sides: dict[str, SimpleNamespace], seeds: int, epochs: int) -> list[results.Row]:
    rows = []
    for method in METHODS:
        study = Study(method, epochs)
        for layers in sides.values():  # warm up
            study.loss(study.network(layers), next(batches(study.train_data, SETTINGS.batch_size))).backward()
        for seed in range(seeds):
            made: dict[str, list[Tensor]] = {}
            for side, layers in sides.items():
                curve, made[side] = study.train(layers, seed)
                row = {"method": method, "side": side, "seed": seed, **curve}
                if side == "reference":
                    pairs = zip(made["ours"], made[side], strict=True)
                    row["same_choices"] = next((i for i, (a, b) in enumerate(pairs) if not a.equal(b)), curve["steps"][-1])
                rows.append(row)
                print(
                    f"{method:20}{side:10} seed {seed}: {100 * curve['accuracy'][-1]:.1f} % in {curve['seconds'][-1]:.1f} s",
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="a checkout of PytorchRouting; by default, ours alone")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs, help="of training")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "learning-routing.json", help="where the results go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sides = {"ours": our_layers()}
    if args.reference is not None:
        sides["reference"] = reference_layers(args.reference)
    rows = run(sides, args.seeds, args.epochs)
    settings = {**SETTINGS._asdict(), "epochs": args.epochs, "threads": 1}
    study = {"machine": describe_machine(), "date": datetime.date.today().isoformat(), "settings": settings, "rows": rows}
    args.out.write_text(json.dumps(study) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
