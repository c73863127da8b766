"""The page of a run: complete by itself, true to the log, and laid out well in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

from lopt.runs.history import History
from lopt.runs.page import page
from lopt.runs.pictures import seconds_by_activity

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PICTURES = 8
VOID = {"meta", "br", "hr", "img", "link", "input"}


def history() -> History:
    """Forty outer steps of two families, validated every ten."""
    records = [validation(0)]
    for step in range(1, 41):
        family, loss = ("mlp", 1 / step) if step % 2 else ("cnn", 2 / step)
        records.append(
            {
                "step": step, "seconds": 1.5, "outer_loss": loss, f"outer_loss/{family}": loss,
                f"seconds/{family}": 1.0, "step_rms/matrix": 1e-2, "update_ratio/matrix": 1e-1,
                "gradient_norm": 0.3, "clipped_share": 0.25, "dropped_share": 0.0, "memory_mib": 300.0,
                "inner_steps_per_second": 1234.0, "diverged": 7, "restarts": 3, "skipped": 0,
            }
        )  # fmt: skip
        if step % 10 == 0:
            records.append(validation(step))
    return History(records)


def validation(step: int) -> dict[str, object]:
    scores = {"validation/digits": -1 - step / 100, "validation/<b>odd</b>": -2.0}
    losses = {"digits": [1.0, 0.5, 0.1], "<b>odd</b>": [1.0, 0.8, 0.7]}
    mean = sum(scores.values()) / len(scores)
    curves = {"steps": [0, 150, 299], "losses": losses}
    return {"step": step, "seconds": 4.0, "validation": mean, **scores, "curves": curves}


class Page(HTMLParser):
    """What a page refers to, its tables and its texts; asserts that elements are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.references: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.references += [value or "" for key, value in attrs if key.split(":")[-1] in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.fixture(scope="module")
def text() -> str:
    return page("my <run>", 40, history(), "name: <demo>\nseed: 0\n", {"commit": "abc", "config": {"a": 1}})


def test_page_refers_to_nothing_outside_and_runs_nothing(text: str) -> None:
    found = Page(text)
    assert all(reference.startswith("#") for reference in found.references)
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert "script" not in found.count
    assert "@import" not in text
    assert found.count["svg"] == PICTURES


def test_page_tells_what_the_log_holds(text: str) -> None:
    texts = Page(text).texts
    for expected in ("my <run>", "name: <demo>\nseed: 0", "abc", "digits", "<b>odd</b>", "1,234", "25%", "7"):
        assert expected in texts, expected
    assert "meta-training, finished: outer step 40 of 40" in texts
    row = texts.index("digits", texts.index("mean of all"))
    assert [t for t in texts[row:] if t][:6] == ["digits", "-1.000", "-1.400", "40", "-1.400", "-33.0%"]


def test_text_takes_the_colour_of_the_reader(text: str) -> None:
    svg = re.findall(r"<svg.*?</svg>", text, re.DOTALL)[0]
    assert "currentColor" in svg
    assert not re.search(r"<svg[^>]*\b(width|height)=", svg)
    assert "prefers-color-scheme: dark" in text


def test_a_run_that_has_not_begun_has_a_page() -> None:
    texts = Page(page("new", 10, History([]), "", None)).texts
    assert "meta-training, not finished: outer step 0 of 10" in texts
    assert "No validation so far." in texts


def test_time_is_told_to_the_last_second() -> None:
    spent = seconds_by_activity(history())
    assert spent == {"training mlp": 20.0, "training cnn": 20.0, "validation": 20.0, "the rest": 20.0}


@pytest.mark.parametrize("width", [420, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH to look at the page with")
def test_browser_lays_the_page_out(text: str, tmp_path: Path, width: int, scheme: str) -> None:
    """A script added to a copy measures it; a screenshot shows dark ink on light paper, or light on dark."""
    measure = """<script>
      const boxes = [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect());
      document.title = JSON.stringify({wide: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
        boxes: boxes.map(b => [b.width, b.height, b.right]),
        ink: getComputedStyle(document.body).color, text: document.querySelector("svg text").getBBox().width});
    </script></body>"""
    file, picture = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(text.replace("</body>", measure))
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile",
        f"--window-size={width},900", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
    ]  # fmt: skip
    address = f"file://{file}"
    assert BROWSER is not None
    dom = browse(BROWSER, *options, "--dump-dom", address)
    found = json.loads(re.findall(r"<title>(.*?)</title>", dom)[0])
    assert found["wide"] <= 0
    assert len(found["boxes"]) == PICTURES
    for box_width, height, right in found["boxes"]:
        assert 300 < box_width < 1200
        assert 150 < height < 800
        assert right <= found["width"]
    assert found["text"] > 5
    browse(BROWSER, *options, f"--screenshot={picture}", address)
    pixels = matplotlib.image.imread(picture)[..., :3].mean(-1)
    paper = pixels[2, 2]
    ink = pixels.min() if scheme == "light" else pixels.max()
    assert (paper > 0.9 and ink < 0.3) if scheme == "light" else (paper < 0.15 and ink > 0.8)
    assert 0.01 < (abs(pixels - paper) > 0.3).mean() < 0.5


def browse(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
