"""The hub: the published files, fetching them and others, and the hashes by which files are told apart."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HTTPError

from clamplib.files import InputError, atomic_path, cause_of, sha256, show
from clamplib.models.geometry import Geometry

CLAMP3_REPO, M3_REPO, MERT_REPO = "sander-wood/clamp3", "sander-wood/clamp2", "m-a-p/MERT-v1-95M"
HUB_NAME, SHA256 = re.compile(r"[\w.-]+/[\w.-]+"), re.compile("[0-9a-f]{64}")
HASHED_AT_ONCE = 100_000_000  # bytes; the hash of a larger file is kept in a file next to it
USE_MINI = "or use --variant mini, which needs no download"


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights that others have published.

    Attributes:
        size: its bytes, for messages; None where they are not known.
        revision: the commit of the hub that is fetched; None: the newest.
        sha256: the hash that the file of this commit must have; None where it is not known.
    """

    size: int | None = None
    revision: str | None = None
    sha256: str | None = None


# By repository and name. To fill in a file: `sha256sum FILE` prints its hash, and the page "Files and versions" of its
# repository shows the commit, all 40 digits of which are the revision. Fill in both, because another commit may have
# another file. Without them a download is still compared with the hash that the hub itself states.
PUBLISHED = {
    (CLAMP3_REPO, Geometry().clamp3_weights_name("saas")): PublishedFile(size=2_571_027_658),
    (CLAMP3_REPO, Geometry().clamp3_weights_name("c2")): PublishedFile(size=2_571_027_658),
    (M3_REPO, Geometry().m3_weights_name()): PublishedFile(),
    (MERT_REPO, "pytorch_model.bin"): PublishedFile(),
    ("Salesforce/blip-image-captioning-base", "model.safetensors"): PublishedFile(),
    ("Salesforce/blip-image-captioning-base", "pytorch_model.bin"): PublishedFile(),
}


@contextmanager
def fetching(what: str, remedy: str) -> Iterator[None]:
    """Turns the errors of fetching from the hub into one that says what is missing and what to do.

    Args:
        what: what is fetched; the message begins with it.
        remedy: sentences that say what to do. The message ends with them.

    Raises:
        FileNotFoundError: the block could not fetch it.
    """
    try:
        yield
    except InputError:  # it was fetched
        raise
    except (OSError, ValueError, HTTPError) as error:
        raise FileNotFoundError(
            f"{what} is not in the cache of huggingface_hub and could not be fetched ({cause_of(error)}). {remedy}"
        ) from error


def fetch_file(repo: str, name: str, revision: str | None = None) -> Path:
    """Fetches a file from the hub or its cache, and checks its content. An interrupted download is resumed.

    Args:
        repo: the repository.
        name: the file in it.
        revision: a branch, tag or commit; None: that of PUBLISHED.

    Raises:
        InputError: the content has not the hash that PUBLISHED or the hub states.
    """
    published = PUBLISHED.get((repo, name), PublishedFile())
    path = Path(huggingface_hub.hf_hub_download(repo, name, revision=revision or published.revision))
    check_content(path, published.sha256 if revision in (None, published.revision) else None)
    return path


def fetch_folder(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetches the files of a repository whose names match, and checks the content of the weights among them.

    Raises:
        InputError: a file has not the hash that the hub states.
    """
    folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin"):
            published = PUBLISHED.get((repo, path.name), PublishedFile())
            check_content(path, published.sha256 if revision in (None, published.revision) else None)
    return folder


def check_content(path: Path, expected: str | None = None) -> None:
    """Raises InputError if a file in the hub's cache has another content than the file on the hub.

    Args:
        path: the file. The cache keeps a large file under the SHA-256 that the hub states for it.
        expected: the SHA-256 of the published file, if it is known.
    """
    stated = path.resolve().name
    for digest in (expected, stated if SHA256.fullmatch(stated) else None):
        if digest and weights_sha256(path) != digest:
            raise InputError(
                f"{show(path)}: expected the content of SHA-256 {digest}, got another: the file is damaged. "
                f"Remove {show(path.resolve())} and run again."
            )


def weights_sha256(path: str | Path) -> str:
    """Computes the SHA-256 of a file. A large file's is kept next to it, in NAME.sha256, until the file changes."""
    path = Path(path)
    stat = path.stat()
    if stat.st_size < HASHED_AT_ONCE:
        return sha256(path)
    kept = path.with_name(path.name + ".sha256")
    state = f"{stat.st_size} {stat.st_mtime_ns}"
    try:
        digest, _, kept_state = kept.read_text().partition(" ")
        if kept_state == state:
            return digest
    except OSError:
        pass
    digest = sha256(path)
    try:
        with atomic_path(kept) as temporary:
            temporary.write_text(f"{digest} {state}")
    except OSError:  # a read-only folder: the file is hashed again next time
        pass
    return digest
