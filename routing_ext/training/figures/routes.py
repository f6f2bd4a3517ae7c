"""Which modules the tasks of a routed network use, and how well they are solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .style import FAINT, OURS, SOFT, STYLE, WEIGHTS

if TYPE_CHECKING:
    from ...tasks import MultiTaskImages


class Routes(NamedTuple):
    """Of T tasks, and layers of up to K modules.

    Attributes:
        accuracies: ``[T]``, on test images.
        shares: ``[layers,T,K]``: of a task's images, the share that each module got.
        names: of the tasks.
    """

    accuracies: Tensor
    shares: Tensor
    names: Sequence[str]


@torch.no_grad()
def follow_routes(network: nn.Module, images: MultiTaskImages, batch_size: int = 256) -> Routes:
    """Sends all images through the network, in the mode that it is in: in eval mode, decisions are the most likely ones.

    Args:
        network: a :class:`~routing_ext.tasks.MultiTaskNetwork`.
        images: test images.
        batch_size: of a step.
    """
    num_tasks, routed = images.num_tasks, network
    selections: Any = routed.selections
    chosen: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: chosen.append(args[2].cpu())) for layer in selections]
    most = max(len(layer._submodules) for layer in selections)
    right, total = torch.zeros(num_tasks), torch.zeros(num_tasks)
    counts = torch.zeros(len(selections), num_tasks, most)
    place = next(network.parameters())
    for pictures, labels, tasks in images.batches(batch_size):
        chosen.clear()
        logits, _ = network(pictures.to(place.device, place.dtype), tasks.to(place.device))
        right += torch.bincount(tasks, (logits.argmax(1).cpu() == labels).float(), num_tasks)
        total += torch.bincount(tasks, minlength=num_tasks)
        for count, actions in zip(counts, chosen, strict=True):
            count += torch.bincount(tasks * most + actions, minlength=num_tasks * most).view(num_tasks, most)
    for hook in hooks:
        hook.remove()
    shares = counts / counts.sum(2, keepdim=True).clamp(min=1)
    return Routes(right / total.clamp(min=1), shares, images.task_names)


def draw_routes(routes: Routes, title: str = "Tasks and their modules", about: str = "") -> Figure:
    """Accuracy of each task, and for each layer a heat map of tasks and modules. Tasks that share modules are neighbours.

    Args:
        routes: to draw.
        title: above all.
        about: more of it, in a smaller font.
    """
    order = _neighbours(routes.shares)
    layers, num_tasks, modules = routes.shares.shape
    longest = max(len(name) for name in routes.names)
    names_width, bars, map_width = 0.3 + 0.085 * longest, 1.9, max(1.4, 0.19 * modules)
    width = names_width + bars + layers * (map_width + 0.35) + 0.3
    height = 1.9 + 0.27 * num_tasks
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=140, facecolor="white")
        bottom, tall = 0.6 / height, 0.27 * num_tasks / height

        ax = figure.add_axes((names_width / width, bottom, (bars - 0.55) / width, tall))
        accuracies = 100 * routes.accuracies[order].numpy()
        ax.barh(range(num_tasks), accuracies, color=OURS, height=0.72)
        for y, accuracy in enumerate(accuracies):
            ax.text(accuracy + 2, y, f"{accuracy:.1f}", va="center", fontsize=8.5)
        ax.set_yticks(range(num_tasks), [routes.names[task] for task in order], fontsize=9)
        ax.set(xlim=(0, 100), ylim=(num_tasks - 0.5, -0.5), xticks=())
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set_title("accuracy, %", fontsize=10, weight="bold", pad=6, loc="left")

        for layer in range(layers):
            left = names_width + bars + layer * (map_width + 0.35)
            ax = figure.add_axes((left / width, bottom, map_width / width, tall))
            ax.pcolormesh(routes.shares[layer, order], cmap=WEIGHTS, vmin=0, vmax=1, edgecolors=FAINT, linewidth=0.4)
            ax.invert_yaxis()
            used = np.flatnonzero(routes.shares[layer].amax(0).numpy() > 0.05)
            ax.set_xticks(used + 0.5, [str(module) for module in used], fontsize=7.5)
            ax.set(yticks=())
            ax.tick_params(length=0, pad=2)
            ax.spines[:].set_visible(False)
            ax.set_title(f"layer {layer + 1}: {len(used)} of {modules} modules", fontsize=10, weight="bold", pad=6, loc="left")
        figure.text(0.25 / width, 1 - 0.4 / height, title, fontsize=14, weight="bold")
        about = about or "The darker a cell, the more of a task's images go through the module"
        figure.text(0.25 / width, 1 - 0.66 / height, about, fontsize=9.5, color=SOFT)
    return figure


def _neighbours(shares: Tensor) -> list[int]:
    """An order of the tasks in which each is followed by the one most like it."""
    similarity = torch.einsum("ltk,luk->tu", shares, shares)
    order = [0]
    while len(order) < len(similarity):
        similarity[:, order[-1]] = -1
        order.append(int(similarity[order[-1]].argmax()))
    return order
