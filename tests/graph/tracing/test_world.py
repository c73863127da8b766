"""A trace, failed or not, and a verification change nothing that the model's code can reach."""

from __future__ import annotations

import functools
import gc
import random
import sys
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lopt.errors import GraphError, GraphWarning
from lopt.graph import ParameterGraph
from lopt.graph.tracing.world import ARRAYS, World

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

CONSTANTS: dict[tuple[float, int], Tensor] = {}
SEEN: list[Any] = []
LAST: Any = "nothing yet"
CALLS = 0
TENSOR = torch.zeros(4)


def constant(value: float, n: int) -> Tensor:
    if (value, n) not in CONSTANTS:
        CONSTANTS[value, n] = torch.full((n,), value)
    return CONSTANTS[value, n]


@functools.lru_cache
def ramp(n: int) -> Tensor:
    return torch.arange(n) + torch.zeros(())


class Slotted:
    __slots__ = ("count", "state")

    def __init__(self) -> None:
        self.count, self.state = 0, ()


class Shared:
    table: dict[str, Tensor] = {}  # noqa: RUF012
    last: Any = None


class Writer(nn.Module):
    """Writes everywhere: module, class, function, closures, defaults, arguments, settings and generators."""

    by_shape: dict[tuple[int, ...], Tensor] = {}  # noqa: RUF012
    latest: Any = "class"

    def __init__(self, needs_values: bool, fails: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.needs_values, self.fails = needs_values, fails
        self.loose = [nn.Linear(2, 2)]
        self.rng, self.dice = torch.Generator(), random.Random(0)
        self.counter: Counter[str] = Counter()
        self.deep = SimpleNamespace(a=SimpleNamespace(b={"c": [SimpleNamespace(d=deque([1]))]}))
        self.history = torch.zeros(4)

    def forward(self, x: Tensor, cache: Any, kept: dict[str, Any] = {}) -> Tensor:  # noqa: B006
        global LAST, CALLS
        CALLS += 1
        h = self.first(x).relu() * constant(2.0, 4) + ramp(4)
        LAST = kept["h"] = self.by_shape[tuple(h.shape)] = h
        SEEN.append((h, h))
        Writer.latest = Shared.last = Shared.table["h"] = h
        self.remember(h)
        cache.slots.state, cache.slots.count = (*cache.slots.state, h), cache.slots.count + 1
        cache.keys.append(h)
        cache.order["k"] = h
        cache.values.add_(1)
        self.deep.a.b["c"][0].d.append(h)
        self.counter["calls"] += 1
        self.loose[0].extra = h
        self.history.add_(1)
        TENSOR.mul_(2).add_(1)
        self.dice.random()
        torch.rand(1, generator=self.rng)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        for p in cache.parameters:
            p.requires_grad_(False)
            p.grad = torch.ones_like(p)
        self.train(False)
        if self.needs_values and h.sum().item() > 1e9:
            h = h + 1
        if self.fails:
            raise RuntimeError("after all that")
        return self.second(h)

    def remember(self, h: Tensor) -> None:
        constant.last = h  # type: ignore[attr-defined]


def _cache() -> SimpleNamespace:
    own = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    return SimpleNamespace(
        keys=[], order=OrderedDict(), values=torch.zeros(4), slots=Slotted(), parameters=[own]
    )


def _state(model: Writer, cache: SimpleNamespace, hooked: Callable[[], Any]) -> list[Any]:
    """Everything that `Writer` writes to, printed."""
    p = cache.parameters[0]
    return [repr(x) for x in (
        dict(CONSTANTS), SEEN, LAST, CALLS, TENSOR, Writer.by_shape, Writer.latest, Shared.table, Shared.last,
        Writer.forward.__defaults__, vars(constant), ramp.cache_info().currsize, cache.keys, cache.order, cache.values,
        cache.slots.state, cache.slots.count, model.deep, model.counter, sorted(vars(model.loose[0])), model.history,
        model.dice.getstate(), model.rng.get_state(), torch.get_default_dtype(), torch.is_grad_enabled(), p.grad,
        p.requires_grad, model.training, hooked(),
    )]  # fmt: skip


def _hook(model: nn.Module) -> Callable[[], Any]:
    calls, kept = 0, []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal calls
        calls += 1
        kept.append(output)

    model.first.register_forward_hook(hook)
    return lambda: (calls, kept)


def _fakes() -> list[FakeTensor]:
    return [t for t in gc.get_objects() if type(t) is FakeTensor]


@pytest.mark.parametrize("needs_values", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_world_is_as_it_was(needs_values: bool, fails: bool) -> None:
    torch.manual_seed(0)
    model, cache = Writer(needs_values, fails), _cache()
    hooked = _hook(model)
    before = _state(model, cache, hooked)
    others = _fakes()  # of tests before this one, held so that nothing new takes their places
    if fails:
        with pytest.raises(GraphError, match="after all that"):
            ParameterGraph.trace(model, (X, cache))
    elif needs_values:
        with pytest.warns(GraphWarning, match="read from one forward pass"):
            graph = ParameterGraph.trace(model, (X, cache))
    else:
        graph = ParameterGraph.trace(model, (X, cache))
    assert _state(model, cache, hooked) == before
    assert not [t for t in _fakes() if all(t is not other for other in others)]
    if not fails:
        assert graph.verify(model, (X, cache)).ok
        assert _state(model, cache, hooked) == before


def test_what_was_there_before_comes_back_and_not_merely_goes() -> None:
    old = torch.ones(4)
    CONSTANTS[2.0, 4] = old
    model, cache = Writer(False, False), _cache()
    cache.order["k"] = "mine"
    try:
        ParameterGraph.trace(model, (X, cache))
        assert {(2.0, 4): old} == CONSTANTS
        assert cache.order == {"k": "mine"}
        assert LAST == "nothing yet"
    finally:
        CONSTANTS.clear()


class Holder:
    pass


class Elsewhere(nn.Module):
    """Finds the places that it writes to in a way that reading its code does not show."""

    def __init__(self, number: int, place: str) -> None:
        super().__init__()
        self.linear, self.number, self.place = nn.Linear(3, 2), number, place

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        registry = next(o for o in gc.get_objects() if id(o) == self.number)
        if self.place == "dictionary":
            registry[1] = (h, [h])
        else:
            registry[0].kept = h
        return h.relu()


def test_containers_that_no_code_names_lose_what_the_trace_put_there() -> None:
    registry = {0: Holder()}
    ParameterGraph.trace(Elsewhere(id(registry), "dictionary"), (X,))
    assert registry.keys() == {0}


def test_an_attribute_that_no_code_names_is_told() -> None:
    registry = {0: Holder()}
    with pytest.raises(GraphError, match=r"Holder\.kept"):
        ParameterGraph.trace(Elsewhere(id(registry), "attribute"), (X,))
    assert not hasattr(registry[0], "kept")


class Imports(nn.Module):
    """Keeps constants in a module that its globals do not name."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__()
        self.linear, self.ways = nn.Linear(3, 2), [lambda: module.cache, self._attribute, self._imported]
        self.module = SimpleNamespace(held=module)

    def _attribute(self) -> Any:
        return self.module.held.cache

    @staticmethod
    def _imported() -> Any:
        from constants_of_a_user import cache  # type: ignore[import-not-found]

        return cache

    def forward(self, x: Tensor, way: int) -> Tensor:
        cache = self.ways[way]()
        if "table" not in cache:
            cache["table"] = {"deep": [(torch.ones(2),)]}
        return self.linear(x) * cache["table"]["deep"][0][0]


@pytest.mark.parametrize("way", range(3), ids=["closure", "attribute", "import"])
def test_modules_that_no_global_names(way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("constants_of_a_user")
    module.cache = {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = Imports(module)
    assert ParameterGraph.trace(model, (X, way)).rung == "traced"
    assert module.cache == {}
    model(X, way).sum().backward()


def refuses(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("not loaded yet")


class LazyTable(OrderedDict[str, Any]):
    """As the tables of transformers' models, which import all of them when they are asked for what they hold."""

    values = items = keys = __iter__ = __len__ = refuses  # type: ignore[assignment]


class LazyList(list[Any]):
    __iter__ = __len__ = refuses  # type: ignore[assignment]


class LazySet(set[Any]):
    __iter__ = __len__ = refuses  # type: ignore[assignment]


class Lazy:
    __class__ = property(refuses)  # type: ignore[assignment]
    __getattribute__ = refuses  # type: ignore[assignment]


class Slot:
    __slots__ = ("held",)


class PropertyByThatName(Slot):
    """As mpmath's constants, behind sympy: what the slot is called is made anew each time, and cannot be set."""

    @property
    def held(self) -> list[int]:  # type: ignore[override]
        return []


class DataSet(np.ndarray[Any, Any]):
    copy = refuses


class Holds(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(3, 2), SimpleNamespace(there=held)
        object.__setattr__(self, "direct", held)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    "hold",
    [
        lambda: LazyTable(a=1),
        lambda: LazyList([1]),
        lambda: LazySet([1]),
        Lazy,
        PropertyByThatName,
        lambda: weakref.proxy(Holder()),
        lambda: np.zeros(ARRAYS + 1, np.uint8).view(DataSet),
    ],
    ids=["table", "list", "set", "object", "slot", "dead proxy", "data set"],
)
def test_what_a_network_merely_holds_is_not_asked_for_anything(hold: Callable[[], Any]) -> None:
    assert ParameterGraph.trace(Holds(hold()), (X,)).rung == "traced"


class TakesFromItsWeight(nn.Module):
    """Its first pass moves what the weight carries to the layer, as bitsandbytes' layers of 8 bits do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(3, 2), nn.Parameter(torch.ones(2), requires_grad=False)
        self.table.packed = torch.full((2,), 3.0)  # type: ignore[attr-defined]
        self.unpacked: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.unpacked is None:
            self.unpacked, self.table.packed = self.table.packed, None  # type: ignore[attr-defined]
        return self.layer(x) * self.unpacked


def test_what_a_tensor_carries_is_put_back() -> None:
    model = TakesFromItsWeight()
    assert ParameterGraph.trace(model, (X,)).rung == "traced"
    assert torch.equal(model(X), 3 * model.layer(X))


class InContext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if SCALE.get() is None:
            SCALE.set(torch.ones(2))
        return self.layer(x) * SCALE.get()


SCALE: ContextVar[Any] = ContextVar("SCALE", default=None)


def test_context_variables_are_as_they_were() -> None:
    model, x = InContext(), torch.randn(4, 3)
    graph = ParameterGraph.trace(model, (x,))
    assert SCALE.get() is None
    assert graph.verify(model, (x,)).ok
    assert SCALE.get() is None


def test_a_submodule_that_the_trace_imports_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    package, sub = ModuleType("package_of_a_user"), ModuleType("package_of_a_user.sub")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    space = {"__name__": "a_user", "package_of_a_user": package, "sub": sub}
    exec(
        "def forward(x):\n    package_of_a_user.sub = sub\n    return x", space
    )  # as an import statement does
    world = World(nn.Identity(), space["forward"])
    space["forward"](X)
    world.restore()
    assert package.sub is sub


def test_a_trace_keeps_nothing_alive() -> None:
    model, cache = Writer(False, False), _cache()
    alive = weakref.ref(cache.slots.__class__), weakref.ref(model)
    ParameterGraph.trace(model, (X, cache))
    del model, cache
    gc.collect()
    assert alive[1]() is None


class Deep(nn.Module):
    """Installs hooks on all modules in the first call, as `transformers` does, and remembers that at the top."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.net: nn.Module = nn.Linear(3, 3)
        for _ in range(depth):
            self.net = nn.Sequential(self.net)
        self.hooked = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.hooked:
            for module in self.modules():
                module.register_forward_hook(lambda *_: None)
            self.hooked = True
        return self.net(x)


def test_the_networks_own_modules_are_put_back_whatever_else_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The code of a large library is wider than what is looked at; deep modules lie behind it."""
    monkeypatch.setattr("lopt.graph.tracing.world.LIMIT", 30)
    model = Deep(12)
    graph = ParameterGraph.trace(model, (X,))
    graph.verify(model, (X,))
    assert not model.hooked
    assert not any(module._forward_hooks for module in model.modules())
