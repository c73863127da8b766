"""The site also shows notebooks, and files outside docs/: log, report, their pictures and results, guide, changelog."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
SHOWN = (
    "benchmarks/LOG.md",
    "benchmarks/REPORT.md",
    "benchmarks/images/*.png",
    "benchmarks/results/*.json",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Files from outside docs/ keep the paths that they have in the repository."""
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        for name, content in pages_of(path):
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def pages_of(notebook: Path) -> Iterator[tuple[str, str | bytes]]:
    """(name, content) of the notebook's page and of the pictures in it."""
    parts = []
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            shown = output.get("data", output)
            if "image/png" in shown:
                picture = f"{notebook.stem}-{number}.png"
                yield picture, base64.b64decode(shown["image/png"])
                parts.append(f"![]({picture})")
            elif text := "".join(shown.get("text", shown.get("text/plain", []))).rstrip():
                parts.append(f"```text\n{text}\n```")
    yield f"{notebook.stem}.md", "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """docs/ is the site's root: links between it and the rest of the repository lose that step."""
    if page.file.src_uri.startswith("benchmarks/"):
        return markdown.replace("](../docs/", "](../")
    markdown = re.sub(r"\]\(\.\./(?=benchmarks/|C)", "](", markdown)
    return markdown.replace("](docs/", "](").replace(".ipynb)", ".md)")
