"""Functions of few variables: of physics, in time, of other functions, with weights made by a network, by experts.

B examples, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from meta_tasks.meta_test.kind import SIZES, Kind
from meta_tasks.module_task import Pair, squared_error
from meta_tasks.networks import mlp

DIFFUSIVITY = 0.1
TRAJECTORY, STEP = 12, 0.25
SENSORS = 20
EVALUATED, HIDDEN = 12, 16


class Taylor(nn.Module):
    """u(x, t) with u_t and u_xx (B, 3): a tanh network that carries its derivatives along with its values.

    For h = tanh(a): dh = (1 - h^2) da and ddh = (1 - h^2) dda - 2 h (1 - h^2) da^2.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip([2, *widths], [*widths, 1], strict=True))

    def forward(self, points: Tensor) -> Tensor:
        h, twice_x = points, torch.zeros_like(points)
        along_x, along_t = torch.eye(2, dtype=points.dtype, device=points.device)
        for number, layer in enumerate(self.layers):
            linear: Tensor = layer.weight.mT  # type: ignore[assignment]
            h, along_x, along_t, twice_x = layer(h), along_x @ linear, along_t @ linear, twice_x @ linear
            if number < len(self.layers) - 1:
                h = torch.tanh(h)
                slope = 1 - h.square()
                twice_x = slope * twice_x - 2 * h * slope * along_x.square()
                along_x, along_t = slope * along_x, slope * along_t
        return torch.cat([h, along_t, twice_x], -1)


def heat(split: str, generator: Generator) -> Pair:
    """Points (x, t) of the unit square; the solution there, and whether it is given (start and walls) or asked for.

    u_t = a u_xx with u = 0 at the walls:  u = sum_k c_k sin(k pi x) exp(-a (k pi)^2 t), k = 1, 2, 3.
    """
    points = torch.rand(SIZES[split], 2, generator=generator)
    where = torch.rand(len(points), generator=generator)
    points[:, 1] *= where > 0.25
    points[:, 0] = torch.where((where > 0.25) & (where < 0.5), points[:, 0].round(), points[:, 0])
    k, c = torch.arange(1, 4), torch.tensor([1.0, -0.6, 0.4])
    x, t = points[:, :1], points[:, 1:]
    solution = (c * (k * math.pi * x).sin() * (-DIFFUSIVITY * (k * math.pi) ** 2 * t).exp()).sum(-1)
    return points, torch.stack([solution, (where < 0.5).float()], -1)


def residual(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Squared residual of the equation, and ten times that of what is given; and the error of the solution.

    Source: Raissi et al. 2019, section 3.1.
    """
    (u, along_t, twice_x), (solution, given) = outputs.unbind(-1), targets.to(outputs.dtype).unbind(-1)
    error = (u - solution).square()
    equation = (along_t - DIFFUSIVITY * twice_x).square()
    return {"loss": (10 * given * error + (1 - given) * equation).mean(), "error": error.mean()}


class OrdinaryDifferentialEquation(nn.Module):
    """Starts (B, 2) -> trajectories (B, times, 2) of dz/dt = f(z), by the midpoint rule.

    Source: Chen et al. 2018 (arXiv 1806.07366).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, start: Tensor) -> Tensor:
        states = [start]
        for _ in range(TRAJECTORY):
            middle = states[-1] + STEP / 2 * self.field(states[-1])
            states.append(states[-1] + STEP * self.field(middle))
        return torch.stack(states[1:], 1)


def pendulum(split: str, generator: Generator) -> Pair:
    """Trajectories of a damped pendulum, in fine steps: angle and speed."""
    state = torch.tensor([2.5, 1.5])
    state = state * (2 * torch.rand(SIZES[split], 2, generator=generator) - 1)
    start, seen = state, []
    fine = 25
    for step in range(1, fine * TRAJECTORY + 1):
        angle, speed = state.unbind(-1)
        speed = speed + STEP / fine * (-2 * angle.sin() - 0.3 * speed)
        state = torch.stack([angle + STEP / fine * speed, speed], -1)
        if step % fine == 0:
            seen.append(state)
    return start, torch.stack(seen, 1)


class Operator(nn.Module):
    """A function at its sensors (B, sensors) and a place (B, 1) -> its image there (B, 1).

    Source: Lu et al. 2021 (DeepONet, arXiv 1910.03193), figure 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch, self.trunk = mlp(SENSORS, (width,), width, "gelu"), mlp(1, (width,), width, "gelu")
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, function: Tensor, place: Tensor) -> Tensor:
        return (self.branch(function) * self.trunk(place)).mean(-1, keepdim=True) + self.bias


def integrals(split: str, generator: Generator) -> Pair:
    """Sums of four cosines, at the sensors; and their integrals from 0 to a place, brought to variance of about 1."""
    heights = torch.randn(SIZES[split], 1, 4, generator=generator)
    waves = math.pi * torch.arange(1, 5)
    sensors, place = torch.linspace(0, 1, SENSORS), torch.rand(SIZES[split], 1, generator=generator)
    function = (heights * (waves * sensors[:, None]).cos()).sum(-1)
    integral = (heights[:, 0] * (waves * place).sin() / waves).sum(-1, keepdim=True)
    return (function, place), 4 * integral


class Hypernetwork(nn.Module):
    """Codes (B, 3) and places (B, P) -> values (B, P) of small networks whose weights it makes of the codes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.weights, self.biases, self.outs = (nn.Linear(width, HIDDEN) for _ in range(3))

    def forward(self, codes: Tensor, places: Tensor) -> Tensor:
        made = self.body(codes)
        weights, biases, outs = self.weights(made), self.biases(made), self.outs(made)
        hidden = torch.tanh(places[..., None] * weights[:, None] + biases[:, None])
        return (hidden * outs[:, None]).sum(-1)


def sines(split: str, generator: Generator) -> Pair:
    """Amplitude, frequency and phase as the code; the sine that they describe, at random places of [-1, 1]."""
    codes = 2 * torch.rand(SIZES[split], 3, generator=generator) - 1
    places = 2 * torch.rand(SIZES[split], EVALUATED, generator=generator) - 1
    amplitude, frequency, phase = codes[..., None].unbind(1)
    return (codes, places), (1 + amplitude / 2) * ((3 + 2 * frequency) * places + 3 * phase).sin()


class MixtureOfExperts(nn.Module):
    """The two experts of the highest gates, weighted by them: (B, inputs) -> (B, 1).

    Source: Shazeer et al. 2017 (arXiv 1701.06538), section 2.1.
    """

    def __init__(self, inputs: int, width: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, experts)
        self.experts = nn.ModuleList(mlp(inputs, (width,), 1) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x)
        second = gates.topk(2, -1).values[..., -1:]
        share = gates.where(gates >= second, -torch.inf).softmax(-1)
        said = torch.cat([expert(x) for expert in self.experts], -1)
        return (share * said).sum(-1, keepdim=True)


def regimes(split: str, generator: Generator) -> Pair:
    """One of four linear functions of eight columns, whichever the signs of the first two say."""
    own = torch.Generator().manual_seed(0)
    slopes = torch.randn(4, 8, generator=own) / 8**0.5
    x = torch.randn(SIZES[split], 8, generator=generator)
    regime = (x[:, 0] > 0) * 2 + (x[:, 1] > 0) * 1
    value = (slopes[regime] * x).sum(-1, keepdim=True)
    return x, value + 0.1 * torch.randn(value.shape, generator=generator)


KINDS = {
    "physics": Kind(lambda: Taylor((24, 24)), heat, residual, batch_size=64),
    "neural_ode": Kind(lambda: OrdinaryDifferentialEquation(32), pendulum, squared_error),
    "operator": Kind(lambda: Operator(32), integrals, squared_error),
    "hypernetwork": Kind(lambda: Hypernetwork(32), sines, squared_error),
    "experts": Kind(lambda: MixtureOfExperts(8, 16, 4), regimes, squared_error),
}
