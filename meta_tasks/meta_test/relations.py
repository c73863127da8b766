"""Relations between things: graphs, sets, pairs, lists, and users with what they like.

B examples, N members, D width.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from meta_tasks.meta_test.kind import SIZES, Kind, digits
from meta_tasks.module_task import Pair, squared_error
from meta_tasks.networks import mlp

NODES, SHOWN = 20, 2
SHAPES, POINTS = 4, 24
USERS, ITEMS, RANK = 60, 90, 4
DOCUMENTS, COLUMNS = 8, 12


class GraphNetwork(nn.Module):
    """Features (B, N, inputs) and the mean over neighbours (B, N, N) -> logits of each node (B, N, outputs).

    h <- relu(W h + U mean h): GraphSAGE (Hamilton et al. 2017, arXiv 1706.02216), section 3.1.
    """

    def __init__(self, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs, *[width] * depth]
        sizes = list(zip(widths[:-1], widths[1:], strict=True))
        self.own = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)
        self.neighbours = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in sizes)
        self.head = nn.Linear(width, outputs)

    def forward(self, features: Tensor, mean: Tensor) -> Tensor:
        for own, neighbours in zip(self.own, self.neighbours, strict=True):
            features = torch.relu(own(features) + neighbours(mean @ features))
        return self.head(features)


def communities(split: str, generator: Generator) -> Pair:
    """Two communities, dense inside and sparse between; some members tell theirs, the others' is asked for."""
    shape = (SIZES[split] // 2, NODES)
    labels = torch.rand(shape, generator=generator).argsort(-1) % 2
    shown = torch.rand(shape, generator=generator).argsort(-1) < 2 * SHOWN
    features = F.one_hot(labels, 2) * shown[..., None]
    chance = torch.where(labels[:, :, None] == labels[:, None, :], 0.35, 0.08)
    edges = (torch.rand(chance.shape, generator=generator) < chance).float().triu(1)
    adjacency = edges + edges.mT
    return (features.float(), adjacency / adjacency.sum(-1, keepdim=True).clamp_min(1)), labels


class SetNetwork(nn.Module):
    """Each member by itself, then the largest over all: (B, N, inputs) -> (B, outputs).

    Source: Zaheer et al. 2017 (Deep Sets, arXiv 1703.06114), section 3.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.member = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
        self.whole = mlp(width, (width,), outputs)

    def forward(self, members: Tensor) -> Tensor:
        return self.whole(self.member(members).amax(1))


def clouds(split: str, generator: Generator) -> Pair:
    """Points (N, points, 2) on a circle, square, cross or spiral, turned, stretched and with noise; which it is."""
    labels = torch.randint(SHAPES, (SIZES[split],), generator=generator)
    u = torch.rand(len(labels), POINTS, generator=generator)
    angle = 2 * torch.pi * u
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    square = circle / circle.abs().amax(-1, keepdim=True)
    arm = 2 * (2 * u % 1) - 1
    cross = (
        torch.where((u < 0.5)[..., None], torch.stack([arm, arm], -1), torch.stack([arm, -arm], -1)) / 2**0.5
    )
    points = torch.stack([circle, square, cross, u[..., None] * circle])[labels, torch.arange(len(labels))]
    turn = 2 * torch.pi * torch.rand(len(labels), generator=generator)
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1).unflatten(-1, (2, 2))
    size = 0.7 + 0.6 * torch.rand(len(labels), 1, 1, generator=generator)
    return size * points @ rotation + 0.1 * torch.randn(points.shape, generator=generator), labels


class TwoViews(nn.Module):
    """Two views (B, inputs) of the same things -> their embeddings on the sphere (B, 2, D)."""

    def __init__(self, inputs: int, width: int, code: int) -> None:
        super().__init__()
        self.encoder = mlp(inputs, (width, width), code)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return F.normalize(torch.stack([self.encoder(first), self.encoder(second)], 1), dim=-1)


def views(split: str, generator: Generator) -> Pair:
    """Each digit twice, shifted by up to a pixel and with a quarter of its pixels gone; its label, for nothing."""
    images, labels = digits(split)
    padded = F.pad(images[:, 0], (1, 1, 1, 1)).unfold(1, 8, 1).unfold(2, 8, 1)

    def view() -> Tensor:
        row, column = torch.randint(3, (2, len(images)), generator=generator)
        kept = torch.rand(len(images), 64, generator=generator) > 0.25
        return padded[torch.arange(len(images)), row, column].flatten(1) * kept

    return (view(), view()), labels


def contrast(embeddings: Tensor, _: Tensor) -> dict[str, Tensor]:
    """Which second view belongs to the first, among those of the batch, at temperature .2; and how often the nearest.

    Source: van den Oord et al. 2018 (arXiv 1807.03748), equation 4.
    """
    similar = embeddings[:, 0] @ embeddings[:, 1].mT / 0.2
    own = torch.arange(len(similar), device=similar.device)
    nearest = (similar.argmax(-1) == own).to(similar.dtype).mean()
    return {"loss": F.cross_entropy(similar, own), "accuracy": nearest}


class Factors(nn.Module):
    """Users (B) and items (B) -> ratings (B): the product of their vectors, and a bias of each."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table in self.children():
            nn.init.normal_(table.weight, std=0.3)  # type: ignore[arg-type]

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        product = (self.user(users) * self.item(items)).sum(-1)
        return product + self.user_bias(users)[..., 0] + self.item_bias(items)[..., 0]


def ratings(split: str, generator: Generator) -> Pair:
    """Noisy entries of one matrix of rank 4 and variance 1, no entry in two splits."""
    own = torch.Generator().manual_seed(0)  # the same matrix for all splits
    truth = torch.randn(USERS, RANK, generator=own) @ torch.randn(RANK, ITEMS, generator=own) / RANK**0.5
    order = torch.randperm(USERS * ITEMS, generator=own)
    entries = dict(zip(SIZES, order[: sum(SIZES.values())].split(list(SIZES.values())), strict=True))[split]
    noise = 0.1 * torch.randn(len(entries), generator=generator)
    return (entries // ITEMS, entries % ITEMS), truth.flatten()[entries] + noise


def lists(split: str, generator: Generator) -> Pair:
    """Documents (N, documents, columns) of a query, and how relevant each is."""
    own = torch.Generator().manual_seed(0)
    taste, turn = (
        torch.randn(COLUMNS, generator=own),
        torch.randn(COLUMNS, COLUMNS, generator=own) / COLUMNS**0.5,
    )
    documents = torch.randn(SIZES[split], DOCUMENTS, COLUMNS, generator=generator)
    relevance = torch.tanh(documents @ turn) @ taste + (documents[..., 0] * documents[..., 1])
    return documents, relevance + 0.3 * torch.randn(relevance.shape, generator=generator)


def listwise(scores: Tensor, relevance: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the chances to be first (Cao et al. 2007, ListNet), and the share of pairs in order."""
    scores, relevance = scores[..., 0], relevance.to(scores.dtype)
    loss = -(relevance.softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()
    pairs = (scores[..., :, None] > scores[..., None, :]) == (
        relevance[..., :, None] > relevance[..., None, :]
    )
    upper = torch.ones(scores.shape[-1], scores.shape[-1], device=scores.device).triu(1)
    return {"loss": loss, "pairs": (pairs.to(scores.dtype) * upper).sum((-1, -2)).mean() / upper.sum()}


def scorer() -> nn.Module:
    """(B, documents, columns) -> scores (B, documents, 1)."""
    return nn.Sequential(
        nn.Linear(COLUMNS, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )


KINDS = {
    "graph_network": Kind(lambda: GraphNetwork(2, 24, 3, 2), communities),
    "deep_sets": Kind(lambda: SetNetwork(2, 32, SHAPES), clouds),
    "contrastive": Kind(lambda: TwoViews(64, 64, 16), views, contrast, batch_size=64, chunk=64),
    "factorisation": Kind(lambda: Factors(USERS, ITEMS, 8), ratings, squared_error, batch_size=256),
    "ranking": Kind(scorer, lists, listwise),
}
