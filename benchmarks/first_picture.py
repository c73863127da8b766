"""The README's picture: gradient -> graph -> metanet -> step of a small network, beside learning curves.

    python -m benchmarks.first_picture

Gradients and steps are those of lopt-base on the network drawn; the curves are those of neural_graphs.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import nn

import lopt
from benchmarks.runner.pictures import set_log_scale
from lopt.cli.arguments import Parser
from lopt.files import write_picture

CURVES = Path("benchmarks/results/neural_graphs.json")
PICTURE = Path("docs/images/first.png")
TASK = "c10-32"
OPTIMIZERS = {"lopt-small": "C3", "lopt-base": "C1", "muon": "C0", "adamw": "0.45"}
TUNED = {"muon": "Muon", "adamw": "AdamW"}
WIDTHS = (4, 6, 5, 3)
HEARD = (1, 2)
"""The neuron, by layer and place, whose messages are drawn."""

Matrices = list[np.ndarray]


def main() -> None:
    Parser(description=__doc__).parse_args()
    gradients, steps = first_step()
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels = figure.subplots(1, 5, width_ratios=(0.55, 1.1, 1.1, 0.55, 2.3))
    draw_matrices(panels[0], gradients, "gradient")
    draw_graph(panels[1], gradients, "graph", "neurons are nodes,\nweights are edges")
    draw_messages(panels[2], "metanet", "weights and neurons\ntell each other")
    draw_matrices(panels[3], steps, "step")
    for left, right in zip(panels[:3], panels[1:4], strict=True):
        arrow = ConnectionPatch(
            (1.0, 0.5), (0.0, 0.5), "axes fraction", "axes fraction", axesA=left, axesB=right
        )
        arrow.set(arrowstyle="-|>", mutation_scale=16, linewidth=1.6, color="0.3")
        figure.add_artist(arrow)
    draw_curves(panels[4])
    write_picture(PICTURE, figure, dpi=110)


def first_step() -> tuple[Matrices, Matrices]:
    """Gradients and first step of lopt-base for each weight (out, in) of a small network."""
    torch.manual_seed(0)
    layers = [nn.Linear(fan_in, out, bias=False) for fan_in, out in zip(WIDTHS, WIDTHS[1:], strict=False)]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    x, y = torch.randn(32, WIDTHS[0]), torch.randint(WIDTHS[-1], (32,))
    nn.functional.cross_entropy(model(x), y).backward()
    before = [layer.weight.detach().clone() for layer in layers]
    graph = lopt.ParameterGraph.trace(model, (x,))
    lopt.LearnedOptimizer(model.parameters(), graph=graph).step()
    steps = [(layer.weight.detach() - old).numpy() for layer, old in zip(layers, before, strict=True)]
    return [layer.weight.grad.numpy() for layer in layers if layer.weight.grad is not None], steps


def draw_matrices(axes: Axes, matrices: Matrices, title: str) -> None:
    """The matrices above one another, each coloured by its own largest entry."""
    columns, gap = max(matrix.shape[1] for matrix in matrices), 1
    rows = sum(len(matrix) for matrix in matrices) + gap * (len(matrices) - 1)
    image, row = np.full((rows, columns), np.nan), 0
    for matrix in matrices:
        image[row : row + len(matrix), : matrix.shape[1]] = matrix / abs(matrix).max()
        row += len(matrix) + gap
    axes.imshow(image, cmap="RdBu", vmin=-1, vmax=1, extent=(0.12, 0.88, 0.02, 0.98), aspect="auto")
    axes.set(xlim=(0, 1), ylim=(0, 1), title=title)
    axes.set_axis_off()


def places() -> list[np.ndarray]:
    """(x, y) of the neurons of each layer."""
    columns = np.linspace(0.12, 0.88, len(WIDTHS))
    return [
        np.stack([np.full(n, x), 0.56 + 0.13 * (np.arange(n) - (n - 1) / 2)], 1)
        for n, x in zip(WIDTHS, columns, strict=True)
    ]


def draw_graph(axes: Axes, values: Matrices, title: str, below: str) -> None:
    """Edges in the colours of their weights' values, wider where they are larger."""
    neurons = places()
    for layer, matrix in enumerate(values):
        for (out, fan_in), value in np.ndenumerate(matrix / abs(matrix).max()):
            ends = np.stack([neurons[layer][fan_in], neurons[layer + 1][out]])
            axes.plot(
                *ends.T, color="#b2182b" if value < 0 else "#2166ac", linewidth=0.2 + 2 * abs(value), zorder=1
            )
    axes.scatter(*np.concatenate(neurons).T, s=42, color="white", edgecolor="0.2", zorder=2)
    _frame(axes, title, below)


def draw_messages(axes: Axes, title: str, below: str) -> None:
    """What one neuron hears: all edges that touch it, and through them its neighbours."""
    neurons = places()
    for layer in range(len(WIDTHS) - 1):
        for fan_in in neurons[layer]:
            for out in neurons[layer + 1]:
                axes.plot(*np.stack([fan_in, out]).T, color="0.88", linewidth=0.6, zorder=1)
    layer, place = HEARD
    heard = neurons[layer][place]
    for other in (*neurons[layer - 1], *neurons[layer + 1]):
        axes.annotate(
            "", heard, other, zorder=2,
            arrowprops={"arrowstyle": "-|>", "color": "C1", "shrinkA": 4, "shrinkB": 6, "linewidth": 1.2},
        )  # fmt: skip
    axes.scatter(*np.concatenate(neurons).T, s=42, color="white", edgecolor="0.2", zorder=3)
    axes.scatter(*heard, s=95, color="C1", edgecolor="0.2", zorder=4)
    _frame(axes, title, below)


def _frame(axes: Axes, title: str, below: str) -> None:
    axes.text(0.5, 0.07, below, ha="center", va="center", fontsize="small", color="0.3")
    axes.set(xlim=(0, 1), ylim=(0, 1), title=title)
    axes.set_axis_off()


def draw_curves(axes: Axes) -> None:
    """Training loss over steps, median of the test seeds."""
    task = json.loads(CURVES.read_text())["tasks"][TASK]
    for name, colour in OPTIMIZERS.items():
        entry = task["entries"][name]
        losses = np.median(np.array(entry["curve"]["train_loss"]), 0)
        rule = entry["kind"] == "rule"
        label = name if rule else f"{TUNED[name]}, tuned"
        axes.plot(
            entry["curve"]["steps"], losses, "-" if rule else "--", color=colour, label=label, linewidth=1.8
        )
    set_log_scale(axes)
    axes.set(
        xlabel="steps", xlim=(0, task["steps"]), title="training loss, a convolutional network on CIFAR-10"
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.4, linewidth=0.5)


if __name__ == "__main__":
    main()
