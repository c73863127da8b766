from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field, model_validator

from lopt.config import (
    Pair,
    Positive,
    Settings,
    Several,
    dump,
    from_mapping,
    load,
    parse_yaml,
    to_mapping,
    wrong,
)
from lopt.errors import ConfigError
from lopt.training.run_config import RunConfig

ROOT = Path(__file__).parents[1]
# Those of runs that go on later, too: a run folder whose config is not read any more cannot be resumed.
CONFIGS = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("benchmarks/runs/*/config.yaml")])


class Inner(Settings):
    steps: Annotated[int, Field(ge=1, le=99)] = 10
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    rates: Several[Positive] = (0.1,)


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    other: Inner | None = None
    mode: Literal["fast", "slow", 3] = "fast"
    flag: bool = False
    pair: Pair[int] = (1, 2)
    items: list[Inner] = []  # noqa: RUF012 - pydantic copies defaults
    sizes: dict[str, int] = {}  # noqa: RUF012
    free: Any = None

    @model_validator(mode="after")
    def _fit(self) -> Outer:
        if self.name == "forbidden":
            raise wrong("another one", self.name, "name")
        return self


FULL = """
name: all of it
inner: {steps: 5, decay: 0, rates: [1e-3, 2, 1.5E+2]}
other: {steps: 7}
mode: 3
flag: true
pair: [2, 5]
items: [{steps: 1}, {}]
sizes: {a: 1, b: 2}
free: {anything: [1, two, null]}
"""


def read(text: str) -> Outer:
    return from_mapping(Outer, parse_yaml(text, "f.yaml"), "f.yaml")


def test_every_kind_of_field_is_read_with_its_type() -> None:
    assert read(FULL) == Outer(
        name="all of it",
        inner=Inner(steps=5, decay=0.0, rates=(1e-3, 2.0, 150.0)),
        other=Inner(steps=7),
        mode=3,
        flag=True,
        pair=(2, 5),
        items=[Inner(steps=1), Inner()],
        sizes={"a": 1, "b": 2},
        free={"anything": [1, "two", None]},
    )
    assert isinstance(read(FULL).inner.decay, float)
    assert all(isinstance(rate, float) for rate in read(FULL).inner.rates)


def test_what_python_has_and_yaml_has_not() -> None:
    found = Outer(
        name=Path("a/b"),
        inner={"steps": np.int64(3), "decay": np.float32(0.5), "rates": np.array([0.25, 1.0])},
        pair=range(2),
        items=[{"steps": np.int32(4)}],
        flag=np.bool_(True),
    )
    inner = Inner(steps=3, decay=0.5, rates=(0.25, 1.0))
    assert found == Outer(name="a/b", inner=inner, pair=(0, 1), items=[Inner(steps=4)], flag=True)
    assert from_mapping(Inner, {"rates": [np.float32(0.5)]}, "here").rates == (0.5,)
    with pytest.raises(ConfigError, match=r"steps: expected a whole number, found 2\.5"):
        Inner(steps=np.float64(2.5))


@pytest.mark.parametrize("source", [None, [1], 3])
def test_what_is_no_config_is_told(source: Any) -> None:
    with pytest.raises(ConfigError, match="config: expected a section with the keys name, inner"):
        load(Outer, source)


def test_missing_keys_take_their_defaults() -> None:
    assert read("name: x") == Outer(name="x")


def test_dump_round_trips(tmp_path: Path) -> None:
    for text in (
        FULL,
        "name: x",
        "{name: '1e-3', free: 1.0e-7}",
        "{name: '010', free: ['no', '1:30', '1_0', '0x1']}",
    ):
        path = tmp_path / "dumped.yaml"
        path.write_text(dump(read(text)))
        assert load(Outer, path) == read(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nnmae: y", "f.yaml: nmae: unknown key; did you mean 'name'?"),
        ("name: x\ninner: {setps: 1}", "f.yaml: inner.setps: unknown key; did you mean 'steps'?"),
        ("name: x\ninner: {zzz: 1}", "f.yaml: inner.zzz: unknown key; expected one of steps, decay, rates"),
        ("inner: {}", "f.yaml: name: expected a value, found nothing"),
        ("", "f.yaml: expected a section with the keys name, inner,"),
        ("[1]", "found the list [1]"),
        ("name: 3", "f.yaml: name: expected text, found 3"),
        ("name:", "f.yaml: name: expected text, found null"),
        ("name: x\nflag: 1", "f.yaml: flag: expected true or false, found 1"),
        ("name: x\nmode: quick", "f.yaml: mode: expected one of 'fast', 'slow' or 3, found 'quick'"),
        ("name: x\ninner: 3", "f.yaml: inner: expected a section with the keys steps, decay, rates, found 3"),
        ("name: x\ninner: {steps: 0}", "f.yaml: inner.steps: expected a number at least 1, found 0"),
        ("name: x\ninner: {steps: 100}", "f.yaml: inner.steps: expected a number at most 99, found 100"),
        ("name: x\ninner: {steps: 1.5}", "f.yaml: inner.steps: expected a whole number"),
        ("name: x\ninner: {steps: true}", "f.yaml: inner.steps: expected a whole number"),
        ("name: x\ninner: {steps: many}", "found 'many'"),
        (
            "name: x\ninner: {decay: 1}",
            "f.yaml: inner.decay: expected a number below 1, found 1",
        ),
        ("name: x\ninner: {decay: .nan}", "f.yaml: inner.decay: expected a finite number"),
        ("name: x\ninner: {rates: [1, 0]}", "f.yaml: inner.rates.1: expected a number above 0, found 0"),
        (
            "name: x\ninner: {rates: 1}",
            "f.yaml: inner.rates: expected a list, found 1",
        ),
        ("name: x\nother: {steps: 0}", "f.yaml: other.steps: expected a number at least 1"),
        ("name: x\npair: [1]", "f.yaml: pair.1: expected a value, found nothing"),
        ("name: x\npair: [1, 2, 3]", "f.yaml: pair: expected at most 2 of them, found the list [1, 2, 3]"),
        ("name: x\nitems: [{}, {steps: -1}]", "f.yaml: items.1.steps:"),
        ("name: x\nsizes: {a: b}", "f.yaml: sizes.a: expected a whole number, found 'b'"),
        ("name: x\nsizes: {1: 2}", "f.yaml: sizes.1: expected text, found 1"),
        ("name: forbidden", "f.yaml: name: expected another one, found 'forbidden'"),
        ("name: [", "f.yaml: line 1: expected valid YAML"),
        ("name: x\n  other: 3", "f.yaml: line 2: expected valid YAML"),
        ("name: x\nname: y", "f.yaml: line 2: expected valid YAML, found: key 'name' given twice"),
        ("name: !!python/object/apply:os.getcwd []", "f.yaml: line 1: expected valid YAML"),
        ("{[1]: 2}", "f.yaml: line 1: expected valid YAML"),
        ("name: \x00", "f.yaml: expected valid YAML"),
        ("? {a: 1}\n: 2", "f.yaml: line 1: expected valid YAML"),
        ("name: 2020-13-45", "f.yaml: line 1: expected valid YAML"),
    ],
)
def test_a_bad_config_is_one_error_that_says_where(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_binary_file_are_config_errors(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    for path, found in (
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "cannot be read"),
        (binary, "cannot"),
    ):
        with pytest.raises(ConfigError, match=found) as caught:
            load(Outer, path)
        assert str(path) in str(caught.value)


def test_overrides_replace_values_by_dotted_key(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("{name: x, items: [{}, {steps: 2}]}")
    overrides = {"name": "y", "inner.steps": 3, "items.1.steps": 4, "other.decay": 0.5, "sizes.a": 1}
    config = load(Outer, path, overrides)
    assert config == Outer(
        name="y",
        inner=Inner(steps=3),
        other=Inner(decay=0.5),
        items=[Inner(), Inner(steps=4)],
        sizes={"a": 1},
    )
    assert load(Outer, path) == Outer(name="x", items=[Inner(), Inner(steps=2)])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("inner.stpes", 3, "command line: inner.stpes: unknown key; did you mean 'steps'?"),
        ("inner.steps", "many", "command line: inner.steps: expected a whole number"),
        ("name.x", 1, "command line: name.x: expected a section above 'x', found 'x'"),
        ("items.2.steps", 1, "command line: items.2.steps: expected an index below 1, found '2'"),
        ("items.first", 1, "found 'first'"),
    ],
)
def test_a_bad_override_is_blamed_on_the_command_line(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("{name: x, items: [{}]}")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(Outer, path, {key: value})


RUN = {"name": "x", "tasks": [{"family": "mlp"}], "validation": ["digits-mlp", {"family": "quadratic"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "f: tasks: expected at least 1 of them, found the list []"),
        ({"validation": []}, "f: validation: expected at least 1 of them"),
        ({"name": "a/b"}, "f: name: expected a name"),
        (
            {"tasks": [{"family": "mlp", "weight": 0}]},
            "f: tasks.0.weight: expected a number above 0, found 0",
        ),
        ({"meta": {"steps": 0}}, "f: meta.steps: expected"),
        ({"seed": -1}, "f: seed: expected a number at least 0"),
        (
            {"seed": 10**400},
            "f: seed: expected a number below 9.22337e+18, found a whole number of more than 38",
        ),
        ({"rule": {"metanet": "mpl"}}, "f: rule.metanet: expected one of axisnet, mlp"),
    ],
)
def test_a_bad_run_config_says_where(change: dict[str, Any], message: str) -> None:
    assert from_mapping(RunConfig, RUN, "f").meta.steps > 0
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_mapping(RunConfig, {**RUN, **change}, "f")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_is_valid_and_round_trips(path: Path) -> None:
    config = load(RunConfig, path)
    assert from_mapping(RunConfig, to_mapping(config), "again") == config
