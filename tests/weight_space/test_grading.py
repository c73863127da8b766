"""Readers that grade: equal to their formula, taught on answers found once, and better than what they began as."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from lopt.errors import ConfigError, DataError
from lopt.weight_space.architecture import architecture_of
from lopt.weight_space.convnets import ConvShape, initial
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.grading import (
    KEYS,
    SPEED,
    Answers,
    Grader,
    answered,
    fit_grader,
    make_grader,
    make_park_grader,
)
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.park_readers import make_park_reader
from lopt.weight_space.parknets import ParkShape
from lopt.weight_space.parknets import initial as initial_park
from lopt.weight_space.readers import MetanetReader
from lopt.weight_space.sirens import SirenShape
from lopt.weight_space.systems import make_reader
from tests.helpers import seeded

SHAPE = ConvShape(size=8, channels=4, classes=3)
IMAGES = 6


def networks(count: int = 12) -> NetworkSet:
    generator = seeded(0)
    found = initial(SHAPE, range(count), torch.linspace(0.5, 3, count))
    params = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in sorted(found.items())
    }
    return NetworkSet(params, {}, torch.zeros(count), {"architecture": SHAPE.model_dump()})


def park() -> NetworkPark:
    shapes = [
        ParkShape(size=8, colours=colours, channels=(4, 5), kernels=(3, 3), classes=3) for colours in (1, 3)
    ]
    sets = [
        NetworkSet(
            dict(sorted(initial_park(shape, range(4), torch.linspace(0.5, 2, 4)).items())),
            {}, torch.zeros(4), {"architecture": shape.model_dump()},
        )
        for shape in shapes
    ]  # fmt: skip
    return NetworkPark(tuple(sets))


def images(colours: int = 1) -> Tensor:
    return torch.randn(IMAGES, colours, 8, 8, generator=seeded(1))


def test_grades_are_shares_of_images_whose_class_is_that_of_a_key() -> None:
    torch.manual_seed(0)
    grader, told = Grader(IMAGES, 3, 1).double().eval(), torch.randint(3, (5, IMAGES))
    keys = (SPEED * grader.keys).softmax(1).detach()
    grades = [[sum(keys[m, own[m], g] for m in range(IMAGES)) / IMAGES for g in range(KEYS)] for own in told]
    torch.testing.assert_close(grader(told), grader.head(torch.tensor(grades).double()))


def test_keys_begin_as_what_networks_say_of_an_image_more_than_of_others() -> None:
    """Though most of them tell the same class of all: only differences among images count."""
    grader = Grader(IMAGES, 3, 1)
    torch.nn.init.zeros_(grader.keys)
    wanted = torch.tensor([0, 1, 2, 0, 1, 2])
    grader.begin(torch.stack([wanted] * 4 + [torch.ones(IMAGES).long()] * 9))
    assert torch.equal(grader.keys.argmax(1), wanted[:, None].expand(-1, KEYS))


def test_answers_found_once_are_those_that_the_reader_finds() -> None:
    some = networks()
    grader = make_grader(some, images(), 2).eval()
    found = answered(grader, some, batch=5)
    model = architecture_of(some).runnable
    points = images()
    said = vmap(lambda one: functional_call(model, one, (points,)))(some.params)
    assert torch.equal(found.told, said.argmax(2))
    torch.testing.assert_close(predict(grader.layers[1], found), predict(grader, some))


def test_one_learns_labels_that_nobody_gave_and_grades_by_them() -> None:
    """The share of classes that are those of a hidden key."""
    generator = seeded(2)
    key = torch.randint(3, (40,), generator=generator)
    told = torch.randint(3, (600, 40), generator=generator)
    knows = torch.rand(600, 40, generator=generator) < torch.rand(600, 1, generator=generator)
    told = torch.where(knows, key, told)
    truth = (told == key).float().mean(1)
    targets = (truth - truth.mean()) / truth.std()
    torch.manual_seed(0)
    grader = Grader(40, 3, 1)
    grader.begin(told[:500])
    fit(grader, Answers(told[:500]), targets[:500], FitOptions(passes=20_000))
    errors = predict(grader, Answers(told[500:]))[:, 0] - targets[500:]
    assert errors.square().mean() < 0.05


def test_a_metanet_begins_as_the_grader_beside_it() -> None:
    some, targets = networks(), torch.linspace(-1, 1, 12)
    torch.manual_seed(0)
    grader = make_grader(some, images(), 1)
    fitted = fit_grader(grader, some, targets, FitOptions(passes=64, batch=4), (some, targets))
    whole = make_reader("nfn_np", some, 1, functions=grader)
    assert isinstance(whole, MetanetReader)
    torch.testing.assert_close(predict(whole, some), predict(grader, some))
    assert min(fitted.validation) < fitted.start


def test_one_of_many_architectures_grades_each_in_its_colours() -> None:
    some = park()
    grader = make_park_grader(some, images(3), 1).eval()
    whole = make_park_reader("gmn", some, 1, functions=grader).eval()
    found = predict(grader, some)
    assert torch.equal(grader(some.batch(torch.arange(8))), found)
    torch.testing.assert_close(predict(whole, some), found)
    assert answered(grader, some).told.shape == (8, IMAGES)


def test_networks_without_code_and_answers_that_are_no_numbers_are_refused() -> None:
    bare = NetworkSet(networks().params, {}, torch.zeros(12), {}, architecture_of(networks()).graph)
    with pytest.raises(ConfigError, match="lopt has the code of"):
        make_grader(bare, images(), 1)
    some = networks()
    some.params["layers.3.bias"][0, 0] = torch.nan
    with pytest.raises(DataError, match="found 1 of 12 with others, first number 0"):
        fit_grader(make_grader(some, images(), 1), some, torch.zeros(12), FitOptions(passes=4))


def test_networks_that_tell_no_class_are_refused() -> None:
    shape = SirenShape(sizes=(2, 5, 1))
    params = {name: p[None] for name, p in sorted(shape.build().named_parameters())}
    sirens = NetworkSet(params, {}, torch.zeros(1), {"architecture": shape.model_dump()})
    with pytest.raises(ConfigError, match="expected classifiers, found SIRENs"):
        make_grader(sirens, torch.zeros(3, 2), 1)
    with pytest.raises(ConfigError, match="expected classifiers, found SIRENs"):
        make_park_grader(NetworkPark((sirens,)), torch.zeros(3, 2), 1)


def test_images_that_networks_cannot_see_are_refused() -> None:
    for wrong in (images()[:, 0], images(3), images()[:, :, 1:], images()[:0]):
        with pytest.raises(ConfigError, match=r"expected one or more images \(M, 1, 8, 8\), found \("):
            make_grader(networks(), wrong, 1)
    with pytest.raises(ConfigError, match=r"images \(M, 3, 8, 8\), found \(6, 1, 8, 8\)"):
        make_park_grader(park(), images(), 1)


def test_what_no_grader_is_taught_by_is_refused() -> None:
    some, options = networks(), FitOptions(passes=4)
    grader = make_grader(some, images(), 1)
    for targets, validation in ((11, 12), (12, 11)):
        with pytest.raises(ConfigError, match="expected a target for each network, found 11 for 12"):
            fit_grader(grader, some, torch.zeros(targets), options, (some, torch.zeros(validation)))
    with pytest.raises(ConfigError, match="expected a reader of `make_grader`"):
        fit_grader(make_reader("probes", some, 1), some, torch.zeros(12), options)


def test_only_metanets_without_probes_have_a_place_for_a_grader() -> None:
    some, mixed = networks(), park()
    one, many = make_grader(some, images(), 1), make_park_grader(mixed, images(3), 1)
    for name, probes in (("statnn", 0), ("probes", 0), ("gmn", 4)):
        with pytest.raises(ConfigError, match=f"reader {name}: expected no functions"):
            make_reader(name, some, 1, probes, functions=one)
        with pytest.raises(ConfigError, match=f"reader {name}: expected no functions"):
            make_park_reader(name, mixed, 1, probes, functions=many)
