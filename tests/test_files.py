"""Lopt's own files: where they are written."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lopt.errors import ConfigError
from lopt.files import make_folder, output_path, write_atomically


def test_a_device_or_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """As root, /dev/null itself was replaced by the file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomically(output_path(pipe), b"what is written")
    reader.join()
    assert read == [b"what is written"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_trying_a_place_leaves_alone_what_another_process_is_writing(tmp_path: Path) -> None:
    partial = tmp_path / "file.partial"
    partial.write_bytes(b"half")
    output_path(tmp_path / "file")
    assert partial.read_bytes() == b"half"
    output_path(tmp_path / "other")
    assert list(tmp_path.iterdir()) == [partial]


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    """A reader took the place of the set of networks that it was trained on."""
    (tmp_path / "networks").write_bytes(b"hours of work")
    (tmp_path / "link").symlink_to("networks")
    with pytest.raises(ConfigError, match="link: expected another file than what is read, found the same"):
        output_path(tmp_path / "link", "cnn-zoo", tmp_path / "networks")
    assert output_path(tmp_path / "reader", tmp_path / "networks") == tmp_path / "reader"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_that_is_full_is_named() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_atomically(Path("/dev/full"), b"what is written")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_leads_to_the_file_and_stays_one(there: bool, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    file, link = tmp_path / "disk" / "file", tmp_path / "link"
    link.symlink_to(file)
    if there:
        file.write_bytes(b"before")
    write_atomically(output_path(link), b"after")
    assert link.is_symlink()
    assert file.read_bytes() == b"after"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "file", "link"]


def test_what_stands_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for way in ("file", "file/a/b"):
        with pytest.raises(ConfigError, match=f"{tmp_path}/file: expected a folder, found a file"):
            make_folder(tmp_path / way)
    with pytest.raises(ConfigError, match=f"{tmp_path}/link: expected a folder, found a link to nothing"):
        make_folder(tmp_path / "link" / "a")


def _keep_writing(path: Path, letter: bytes) -> None:
    for _ in range(100):
        output_path(path)
        write_atomically(path, letter * 100_000)
        found = path.read_bytes()
        assert found in (b"a" * 100_000, b"b" * 100_000)


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    """One died as it renamed what the other had renamed, and readers saw half a file."""
    file = tmp_path / "results.json"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_keep_writing, args=(file, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [file]


def test_without_locks_all_works_for_one_process_at_a_time(tmp_path: Path) -> None:
    """As on Windows: `LearnedOptimizer` could not be imported there."""
    script = """
import sys, warnings
sys.modules["fcntl"] = None
from pathlib import Path
import torch
import lopt
from lopt.files import write_atomically
from lopt.runs.lock import held, held_file
model = torch.nn.Linear(3, 2)
optimizer = lopt.LearnedOptimizer(model.parameters())
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
write_atomically(Path("file"), b"first")
write_atomically(Path("file"), b"second")
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    with held(Path("run")), held_file(Path("set")):
        pass
print(Path("file").read_text(), [str(w.message).split("(")[0] for w in found], sorted(map(str, Path().glob("*"))))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (
        done.stdout
        == "second ['run: this disk keeps no locks ', 'set: this disk keeps no locks '] ['file', 'run']\n"
    ), done.stderr
