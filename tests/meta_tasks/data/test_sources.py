from __future__ import annotations

from pathlib import Path

import pytest

from lopt.errors import DataError
from meta_tasks.data import SOURCES, catalogue, load_images, load_text, locate

PUBLISHED = sorted(name for name, source in SOURCES.items() if source.files)


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_says_what_where_and_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        locate(name, tmp_path)
    message = str(caught.value)
    for part in (SOURCES[name].files[0], str(tmp_path), SOURCES[name].published, "--data DIR", "LOPT_DATA"):
        assert part in message


def test_no_folder_given() -> None:
    with pytest.raises(DataError, match="no data folder was given"):
        load_images("mnist")
    with pytest.raises(DataError, match="no data folder was given"):
        load_text("tinyshakespeare")


def test_a_missing_file_of_a_set_is_named(fabricated: str, tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in (Path(fabricated) / "MNIST" / "raw").iterdir():
        if file.name != "t10k-labels-idx1-ubyte":
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="no MNIST/raw/t10k-labels-idx1-ubyte"):
        load_images("mnist", root=tmp_path)


def test_the_pickled_edition_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="cifar-10-batches-py is there, but it is a pickle"):
        load_images("cifar10", root=tmp_path)


def test_environment_variable(fabricated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOPT_DATA", fabricated)
    assert len(locate("fashion_mnist")) == 4
    assert load_images("fashion_mnist").name == "fashion_mnist"


def test_catalogue(fabricated: str) -> None:
    assert all(status.present for status in catalogue(fabricated))
    without = {status.source.name for status in catalogue() if not status.present}
    assert without == set(PUBLISHED) == {"mnist", "fashion_mnist", "cifar10", "tinyshakespeare"}
    assert all(source.licence and source.published for source in SOURCES.values())
