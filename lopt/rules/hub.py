"""Rules on the Hugging Face Hub: a repository holds one, as `rule.safetensors`, and its card. Needs `lopt[hub]`.

Nothing here is called unless a name begins with "hf:" or a rule is pushed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from lopt.errors import HubError

PREFIX = "hf:"
FILE = "rule.safetensors"
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


def is_hub_name(name: object) -> bool:
    """Whether a rule is asked for by its place on the Hub."""
    return str(name).startswith(PREFIX)


def fetch(name: str) -> Path:
    """The rule file of "hf:owner/name" or "hf:owner/name@revision", downloaded unless the cache has it.

    Where the Hub cannot be reached, or is not to be (HF_HUB_OFFLINE=1), the copy in the cache serves.
    Raises `HubError` if there is none, or no such repository or revision, or no rule in it.
    """
    repo, revision = parse(name)
    hub = _library()
    with _one_clear_error(repo, revision):
        return Path(hub.hf_hub_download(repo, FILE, revision=revision, library_name="lopt"))


def upload(name: str, files: Mapping[str, bytes], *, private: bool = False) -> str:
    """Put files into a repository, made if it is not there; returns its address. Raises `HubError`."""
    repo, revision = parse(name)
    if revision is not None:
        raise HubError(
            f"{name!r}: expected owner/name to push to, found a revision too; leave out @{revision}"
        )
    hub = _library()
    operations = [hub.CommitOperationAdd(path, content) for path, content in files.items()]
    with _one_clear_error(repo, None):
        api = hub.HfApi(library_name="lopt")
        url = api.create_repo(repo, exist_ok=True, private=private or None)
        api.create_commit(repo, operations, commit_message="Push a lopt rule")
        return str(url)


def parse(name: str) -> tuple[str, str | None]:
    """Repository and revision of "[hf:]owner/name[@revision]"."""
    match = NAME.fullmatch(str(name).removeprefix(PREFIX))
    if match is None:
        raise HubError(f"{str(name)!r}: expected hf:owner/name or hf:owner/name@revision")
    return match["repo"], match["revision"]


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            'the Hugging Face Hub needs the package huggingface_hub, which is not installed; pip install "lopt[hub]"'
        ) from None
    return huggingface_hub


@contextmanager
def _one_clear_error(repo: str, revision: str | None) -> Iterator[None]:
    """Whatever the Hub's client raises, as one `HubError` that says what to do."""
    from huggingface_hub import errors

    place = PREFIX + repo + (f"@{revision}" if revision else "")
    try:
        yield
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{place}: no such repository, or no access to it; check the name, and `hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{place}: the repository has no such branch, tag or commit") from None
    except errors.LocalEntryNotFoundError:
        raise HubError(
            f"{place}: the Hub cannot be reached and no copy is in the cache; connect once, or pass a file"
        ) from None
    except errors.EntryNotFoundError:
        raise HubError(f"{place}: not a lopt rule: the repository holds no {FILE}") from None
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise HubError(
                f"{place}: the Hub refuses; `hf auth login` with a token that may write there"
            ) from None
        raise HubError(f"{place}: {_first_line(error)}") from None
    # requests' and httpx's own errors too, of which only the first are OSErrors.
    except (OSError, ValueError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise HubError(f"{place}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    if re.search("Connect|Timeout", type(error).__name__):
        return f"the Hub cannot be reached ({type(error).__name__})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
