"""Trains a routed network on several image classification tasks at once, in one of the three published architectures.

    python examples/routing_networks.py --data digits
    python examples/routing_networks.py --data mnist5k --algorithm AAC
    python examples/routing_networks.py --data cifar100 FOLDER --architecture dispatched

digits and mnist5k come with Python packages; mnist, fashion and cifar100 are read from your files. MultiTaskNetwork in
routing_ext.tasks says what the architectures are. The algorithm PerTaskAssignment is the baseline without routing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from routing_ext import routing
from routing_ext.routing import CorrectClassifiedReward, Decision, Loss, Selection
from routing_ext.tasks import Batch, MultiTaskNetwork, load_images
from routing_ext.tasks.load_images import BUNDLED, FROM_FILES
from routing_ext.tasks.multitask_networks import Architecture

ALGORITHMS = {
    name: made
    for name, made in vars(routing).items()
    if isinstance(made, type) and issubclass(made, Decision) and made not in (Decision, routing.PassThrough)
}


class Epoch(NamedTuple):
    """Means over one pass: the modules' loss, the decisions' loss, and the accuracy of each task, ``[T]``."""

    module_loss: float
    decision_loss: float
    accuracy: Tensor


def run_epoch(
    network: MultiTaskNetwork, loss: Loss, batches: Iterable[Batch], optimizer: torch.optim.Optimizer | None = None
) -> Epoch:
    """Trains if there is an optimiser, else evaluates."""
    network.train(optimizer is not None)
    losses = right = asked = torch.zeros(())
    with torch.set_grad_enabled(optimizer is not None):
        for images, labels, tasks in batches:
            logits, meta = network(images, tasks)
            module_loss, decision_loss = loss(logits, meta, labels)
            if optimizer is not None:
                optimizer.zero_grad()
                (module_loss + decision_loss).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 40.0)
                optimizer.step()
            # Added up where they are: reading them would wait for the device.
            losses = losses + torch.stack([module_loss.detach(), decision_loss.detach()]) * len(labels)
            right = right + tasks[logits.argmax(1) == labels].bincount(minlength=network.num_tasks)
            asked = asked + tasks.bincount(minlength=network.num_tasks)
    module_loss, decision_loss = (losses / asked.sum()).tolist()
    return Epoch(module_loss, decision_loss, (right / asked).cpu())


def modules_used(network: MultiTaskNetwork, batches: Iterable[Batch]) -> list[int]:
    """How many modules of each layer the images go through in evaluation."""
    layers = [m for m in network.modules() if isinstance(m, Selection)]
    for layer in layers:
        layer.start_logging_selections()
    network.eval()
    with torch.no_grad():
        for images, _, tasks in batches:
            network(images, tasks)
    return [len(layer.stop_logging_and_get_selections()) for layer in layers]


def with_progress(batches: Iterable[Batch], title: str, total: int) -> Iterator[Batch]:
    """The batches, with a bar that counts their images."""
    with tqdm(total=total, desc=title, unit=" images", unit_scale=True, dynamic_ncols=True, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.labels))


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    order = torch.Generator().manual_seed(args.seed)
    train, test = (part.to(args.device) for part in load_images(*args.data, seed=args.seed))
    channels, height, width = train.images.shape[1:]
    network = MultiTaskNetwork(
        (channels, height, width),
        train.num_classes,
        train.num_tasks,
        ALGORITHMS[args.algorithm],
        args.architecture,
        args.modules,
    ).to(args.device)
    loss = Loss(nn.CrossEntropyLoss(), CorrectClassifiedReward())
    # One optimiser for all epochs, so that what it remembers of the gradients lives as long as the training.
    optimizer = torch.optim.Adam(network.parameter_groups(args.learning_rate, args.decision_learning_rate))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [args.epochs // 2, args.epochs * 3 // 4], gamma=0.3)

    print(f"{train.num_tasks} tasks, {len(train):,} images to train, {len(test):,} to test, seed {args.seed}")
    print(f"{'epoch':>5} {'module loss':>12} {'decision loss':>14} {'training':>9} {'test':>7} {'images/s':>9}")
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        batches = train.batches(args.batch_size, shuffle=True, generator=order)
        trained = run_epoch(network, loss, with_progress(batches, f"epoch {epoch}", len(train)), optimizer)
        seconds = time.perf_counter() - start
        schedule.step()
        tested = run_epoch(network, loss, test.batches(1000))
        print(
            f"{epoch:5} {trained.module_loss:12.4f} {trained.decision_loss:14.4f} {trained.accuracy.mean():9.1%} "
            f"{tested.accuracy.mean():7.1%} {len(train) / seconds:9,.0f}"
        )

    names = max(map(len, train.task_names))
    print(f"\n{args.architecture}, {args.algorithm}: test accuracy after {args.epochs} epochs")
    for name, accuracy in zip(train.task_names, tested.accuracy.tolist(), strict=True):
        print(f"  {name:{names}} {accuracy:7.1%}")
    print(f"  {'mean':{names}} {tested.accuracy.mean():7.1%}")
    used, of = modules_used(network, test.batches(1000)), len(network.selections[0]._submodules)
    print(f"modules used by the test images, layer by layer: {', '.join(map(str, used))} of {of}")


def parse_args() -> argparse.Namespace:
    def positive(text: str) -> int:
        if (value := int(text)) < 1:
            raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
        return value

    def usable_device(text: str) -> torch.device:
        try:
            return torch.empty(0, device=text).device
        except (RuntimeError, AssertionError) as error:
            raise argparse.ArgumentTypeError(str(error).splitlines()[0]) from None

    about = "Trains a routed network on several image classification tasks at once."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--data",
        nargs="+",
        default=["mnist5k"],
        metavar=("NAME", "FOLDER"),
        help=f"{' or '.join(BUNDLED)}; {', '.join(FROM_FILES)}, each with the folder of your files",
    )
    parser.add_argument("--architecture", choices=get_args(Architecture), default="per-task", help="who decides")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="REINFORCE", metavar="NAME", help=", ".join(ALGORITHMS))
    parser.add_argument("--epochs", type=positive, default=10, help="passes through the training images")
    parser.add_argument("--batch-size", type=positive, default=64, help="images in a batch")
    parser.add_argument("--modules", type=positive, help="modules in each routed layer, by default as many as tasks")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="of trunk and modules")
    parser.add_argument("--decision-learning-rate", type=float, default=0.2, help="of the decisions")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the weights and the training")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    parser.add_argument("--device", type=usable_device, default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    if len(args.data) > 2:
        parser.error(f"argument --data: expected a name and at most one folder, got {' '.join(args.data)}")
    return args


def main() -> None:
    try:
        run(parse_args())
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"routing_networks.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
