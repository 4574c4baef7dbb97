"""Anything -> vectors, in one call.

encoder = CLaMP3Encoder.from_pretrained("mini")
vectors = encoder.encode(["a slow air", Path("air.musicxml"), Path("air.mid")])  # float32 [3, D]
encoder.search("a slow air", vectors)
"""

import itertools
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub
import numpy as np
import torch
from tqdm import tqdm

from clamplib.audio import spectral
from clamplib.embedding.encoding import clamp3_encoders, encode
from clamplib.embedding.reading import (
    IMAGE_SUFFIXES,
    SUFFIXES,
    Input,
    as_array,
    as_list,
    is_image,
    is_item,
    is_numbers,
    is_recording,
    plain_item,
    read_input,
    refuse_image,
)
from clamplib.embedding.recordings import encode_recordings
from clamplib.embedding.sequences import audio_frames, symbolic_patches, text_tokens
from clamplib.files import InputError, describe, run_jobs, show
from clamplib.formats.patchilizer import M3Patchilizer
from clamplib.models import distributed
from clamplib.models.checkpoints import Loaded, save_variant
from clamplib.models.settings import VARIABLE, load_clamp3
from clamplib.retrieval.similarity import normalize, search, unit_mean

if TYPE_CHECKING:  # extras: text, scores and MIDI do without them
    from clamplib.audio.mert import Mert
    from clamplib.embedding.captions import Captioner

CHUNK = 256  # items that are sorted by length and encoded together
SLOW_CHUNK = 8  # of those that another model works on first, so that an interruption costs little
FEW = 16  # files that one process has read before others have started

Item = Any  # see inputs
Items = Item | Sequence[Item]
Vectors = np.ndarray | torch.Tensor  # [N, D], or [D] for one


class CLaMP3Encoder:
    """CLaMP 3 with all that stands before it: conversion of scores and MIDI, features of recordings."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        mert: str | Path | None = None,
        captioner: str | Path | None = None,
    ):
        """`dtype`: torch.bfloat16 or float16 for mixed precision. Weights, a folder or a name on the hub:

        Args:
            mert: of MERT, for recordings; None: the published ones.
            captioner: of BLIP, for images, which are encoded by their captions; None: images are refused.
        """
        self.loaded, self.dtype, self._mert_path, self._captioner_path = loaded, dtype, mert, captioner
        self.device = torch.device(device) if device else distributed.best_device()
        loaded.model.to(self.device)
        self.pretrained: tuple = ()  # how `from_pretrained` makes the same encoder in another process
        self._patchilizer = M3Patchilizer(loaded.geometry.patch_size, loaded.geometry.patch_length)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        *,
        weights_folder: str | Path | None = None,
        mert: str | Path | None = None,
        captioner: str | Path | None = None,
    ) -> "CLaMP3Encoder":
        """Loads a variant: "saas", "c2", "mini", a folder, a .pth, or owner/name of the hub.

        Without a name it is that of the environment variable CLAMP3_VARIANT, else that of line 66 of code/config.py.
        Weights that are not at hand are fetched (at `revision`), with a progress bar, resumed where that broke off;
        FileNotFoundError says which file is missing and where to put it.
        """
        name = name or os.environ.get(VARIABLE) or None
        loaded = load_clamp3(name, weights_folder=weights_folder, revision=revision)
        fronts = {"mert": mert, "captioner": captioner}
        encoder = cls(loaded, device=device, dtype=dtype, **fronts)
        options = {"name": name, "dtype": dtype, "revision": revision, "weights_folder": weights_folder, **fronts}
        encoder.pretrained = tuple(options.items())
        return encoder

    @property
    def dimension(self) -> int:
        """D, the size of a vector."""
        return self.loaded.geometry.clamp3_hidden_size

    def get_sentence_embedding_dimension(self) -> int:
        """`dimension`, under sentence-transformers' name; `get_embedding_dimension` is its newer one."""
        return self.dimension

    get_embedding_dimension = get_sentence_embedding_dimension

    @cached_property
    def space(self) -> dict:
        """What tells these vectors from another model's, as space.json has it."""
        return {**self.loaded.space, "kind": "clamp3 global"}

    @property
    def space_id(self) -> str:
        """A name of the embedding space: vectors of two spaces are not comparable."""
        return f"clamp3-{Path(self.space['variant']).name}-{self.space['weights_sha256'][:16]}"

    @property
    def precision(self) -> str:
        """In which the model computes: float32, bfloat16 or float16."""
        return str(self.dtype or torch.float32).removeprefix("torch.")

    @property
    def audio_front_id(self) -> str:
        """A name of what stands between a recording and the model."""
        return "spectral" if self._spectral else f"mert-{self._mert.space['weights_sha256'][:16]}"

    def front_id(self, source: str | os.PathLike) -> str:
        """A name of what stands between a file and the model and has weights of its own; "" for nothing."""
        if is_recording(source):
            return self.audio_front_id
        return f"blip-{self._captioner.weights_sha256[:16]}" if self._captioner_path and is_image(source) else ""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that a folder is searched for: those of images only where there is a captioner."""
        return SUFFIXES + IMAGE_SUFFIXES if self._captioner_path else SUFFIXES

    @property
    def _spectral(self) -> bool:
        """Whether the model takes spectral features, as `mini` does, and not MERT's."""
        return self.loaded.geometry.audio_hidden_size == spectral.SIZE

    def encode(
        self,
        items: Items,
        modality: str | None = None,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
        convert_to_numpy: bool = True,
        normalize_embeddings: bool = True,
        workers: int | None = None,
    ) -> np.ndarray | torch.Tensor | list[torch.Tensor]:
        """Embeds one item or a list of items of any kinds (see `inputs`), with the keywords of sentence-transformers.

        Args:
            modality: of all items: text, score, midi, audio or image; None: what each item is.
            batch_size: segments of full length in a batch; None: what suits the device.
            show_progress_bar: shows how many items are done.
            convert_to_tensor: returns a tensor on the encoder's device.
            convert_to_numpy: without it, and without `convert_to_tensor`, a list of tensors comes back.
            normalize_embeddings: gives each vector length 1, so that dot products are cosines.
            workers: processes that read and convert; None: one a core where the items are many.

        Returns:
            float32 [D] for one item, [N, D] for a list.

        Raises:
            InputError: names the first item that cannot be read; `encode_each` goes on after it.
        """
        vectors = self._encode(as_list(items), modality, batch_size, show_progress_bar, workers)
        if normalize_embeddings and len(vectors):
            vectors = normalize(vectors)[0]
        if convert_to_tensor:
            vectors = torch.from_numpy(vectors).to(self.device)
        elif not convert_to_numpy:
            vectors = list(torch.from_numpy(vectors))
        return vectors[0] if is_item(items) else vectors

    def encode_query(self, items: Items, **options) -> np.ndarray | torch.Tensor | list[torch.Tensor]:
        """`encode`: queries and documents are read alike."""
        return self.encode(items, **options)

    def encode_document(self, items: Items, **options) -> np.ndarray | torch.Tensor | list[torch.Tensor]:
        """`encode`: queries and documents are read alike."""
        return self.encode(items, **options)

    def _encode(
        self,
        items: Sequence[Item],
        modality: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        workers: int | None = None,
    ) -> np.ndarray:
        """The vectors of a list of items as the model gives them: float32 [N, D]."""
        vectors = np.empty((len(items), self.dimension), np.float32)
        outcomes = self.encode_each(items, modality, batch_size=batch_size, workers=workers)
        outcomes = tqdm(outcomes, total=len(items), unit="item", disable=not show_progress_bar)
        for number, vector in _or_raise(outcomes):
            vectors[number] = vector[0]
        return vectors

    def encode_files(
        self, paths: str | os.PathLike | Iterable[str | os.PathLike], **options
    ) -> np.ndarray | torch.Tensor | list[torch.Tensor]:
        """`encode` of files, whose paths may be strings."""
        if isinstance(paths, str | os.PathLike):
            return self.encode(_as_path(paths), **options)
        return self.encode([_as_path(path) for path in paths], **options)

    def encode_frames(
        self, items: Items, modality: str | None = None, *, batch_size: int | None = None, workers: int | None = None
    ) -> list[np.ndarray]:
        """The last hidden states of each item, float32 [T, H]: a row a token, a bar, some messages, or five seconds."""
        items = as_list(items)
        outcomes = self.encode_each(items, modality, pooled=False, batch_size=batch_size, workers=workers)
        frames = {number: states[0] for number, states in _or_raise(outcomes)}
        return [frames[number] for number in range(len(items))]

    def encode_each(
        self,
        items: Sequence[Item],
        modality: str | None = None,
        *,
        pooled: bool = True,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> Iterator[tuple[int, np.ndarray | None, str | None]]:
        """(number, vector [1, D] or states [1, T, H], None) of each item, or (number, None, why there is none).

        They come as they are done, in no particular order.
        """
        encoders, items = clamp3_encoders(self.loaded, pooled), list(map(plain_item, items))
        for chunk in self._chunks(items, modality, workers):
            by_encoder = defaultdict(list)
            for number, encoder, rows in chunk:
                if encoder is None:
                    yield number, None, _named(items[number], number, rows)
                else:
                    by_encoder[encoder].append((number, rows))
            for encoder, numbered in by_encoder.items():
                numbers, rows = zip(*numbered, strict=True)
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype not in (None, torch.float32)):
                    features = encode(encoders[encoder], rows, batch_size)
                for number, feature in zip(numbers, features, strict=True):
                    if np.isfinite(feature).all():
                        yield number, feature, None
                    else:
                        message = "expected finite features, but the model gave NaN or infinity"
                        yield number, None, _named(items[number], number, message)

    def similarity(self, a: Items | Vectors, b: Items | Vectors) -> np.ndarray:
        """Cosines of two lists of items, or of vectors: float32 [A, B]."""
        return self._unit(a) @ self._unit(b).T

    def similarity_pairwise(self, a: Items | Vectors, b: Items | Vectors) -> np.ndarray:
        """Cosines of a[i] and b[i], items or vectors: float32 [N]. InputError for lists of different lengths."""
        a, b = self._unit(a), self._unit(b)
        if len(a) != len(b):
            raise InputError(f"expected pairs, got {len(a)} and {len(b)} items")
        return np.einsum("nd,nd->n", a, b)

    def search(self, query: Items | Vectors, among: Items | Vectors, top_k: int = 10) -> list[list["Hit"]]:
        """For each query the closest of `among`, closest first. Both are items, or vectors; InputError for none."""
        among = self._unit(among)
        if not len(among):
            raise InputError("expected at least one item to search among")
        rows, similarities = search(self._unit(query), among, top_k)
        return [list(map(Hit, *found)) for found in zip(rows.tolist(), similarities.tolist(), strict=True)]

    def classify(self, items: Items | Vectors, labels: Sequence[str] | Mapping[str, Sequence[str]]) -> list[str]:
        """The label of each item whose text is closest, with no training; `similarity` says how close.

        `labels` are the texts themselves, or some prompts for each label, whose directions are averaged.
        """
        prompts = labels if isinstance(labels, Mapping) else {label: label for label in as_list(labels)}
        names = list(prompts)
        return [names[hits[0].number] for hits in self.search(items, self.prototypes(prompts), top_k=1)]

    def prototypes(self, prompts: Mapping[str, Sequence[str]]) -> np.ndarray:
        """The mean direction of each label's texts: float32 [labels, D], unit rows."""
        if not prompts or not all(prompts.values()):
            raise InputError("expected at least one label, and a text for each")
        return normalize(np.stack([self.encode(as_list(texts), "text").mean(0) for texts in prompts.values()]))[0]

    def score(self, a: Items | Vectors, b: Items | Vectors, group: bool = False) -> float:
        """CLaMP 3 score: the mean cosine of a[i] and b[i]; with `group` the cosine of the means of the two sets.

        InputError for lists of different lengths, if not in a group, and for empty ones.
        """
        if group:
            (own, _), (other, _) = unit_mean(self._vectors(a)), unit_mean(self._vectors(b))
            return float(own @ other)
        similarities = self.similarity_pairwise(a, b)
        if not len(similarities):
            raise InputError("expected at least one pair of items, got none")
        return float(similarities.mean())

    def caption(self, image: str | os.PathLike | bytes) -> str:
        """What an image shows, by the captioner: the text that it is encoded by."""
        if not self._captioner_path:
            refuse_image(image)
        return self._captioner([image])[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained` and every script's --variant take: weights in half precision."""
        save_variant(folder, self.loaded.model, self.loaded.tokenizer, self.loaded.geometry)

    def push_to_hub(self, repo_id: str, *, private: bool = False, revision: str | None = None) -> str:
        """Saves the variant on the hub, where `from_pretrained` finds it by `repo_id`; returns its address."""
        hub = huggingface_hub.HfApi()
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision)
        return str(address)

    def _vectors(self, items: Items | Vectors) -> np.ndarray:
        if not is_numbers(items):
            return self._encode(as_list(items))
        vectors = np.atleast_2d(as_array(items))
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise InputError(f"expected vectors [N, {self.dimension}], got {list(items.shape)}")
        return vectors

    def _unit(self, items: Items | Vectors) -> np.ndarray:
        return normalize(self._vectors(items))[0]

    def read_each(
        self, items: Sequence[Item], modality: str | None = None, *, workers: int | None = None
    ) -> Iterator[tuple[int, str | None, np.ndarray | str]]:
        """Reads items as the encoders take them, in no particular order.

        Yields:
            (number, encoder, sequence [n, ...]) of each item, the encoder being "text", "symbolic" or "audio"; or
            (number, None, why it cannot be read).
        """
        for chunk in self._chunks(list(map(plain_item, items)), modality, workers):
            yield from chunk

    def _chunks(self, items: Sequence[Item], modality: str | None, workers: int | None) -> Iterator[list[tuple]]:
        """(number, encoder, rows that it takes) of some items, or (number, None, error)."""
        by_way = defaultdict(list)
        for number, item in enumerate(items):
            by_way[self._way(item, modality)].append(number)
        ways = {way: way([items[number] for number in numbers], modality, workers) for way, numbers in by_way.items()}
        for way, read in ways.items():
            sequences = ((by_way[way][place], *self._rows(content, error)) for place, content, error in read)
            while chunk := list(itertools.islice(sequences, CHUNK if way is _read else SLOW_CHUNK)):
                yield chunk

    def _way(self, item: Item, modality: str | None) -> Callable[..., Iterator[tuple]]:
        """What takes such items and `workers` and gives (place among them, Input, None) or (place, None, error)."""
        if not self._spectral and is_recording(item, modality):
            return self._hear
        if self._captioner_path and is_image(item, modality):
            return self._see
        return _read

    def _rows(self, content: Input | None, error: str | None) -> tuple[str | None, np.ndarray | str]:
        """The encoder's name and input, or None and the error where there is nothing to encode."""
        if error:
            return None, error
        try:
            if content.modality == "text":
                return "text", text_tokens(content.value, self.loaded.tokenizer)
            if content.modality == "audio":
                return "audio", audio_frames(content.value, self.loaded.geometry.audio_hidden_size)
            return "symbolic", symbolic_patches(content.value, self._patchilizer)
        except InputError as problem:
            return None, str(problem)

    def _hear(self, recordings: Sequence[Item], modality: str | None, workers: int | None) -> Iterator[tuple]:
        mert = self._mert
        mean = partial(mert.encode, mean=True)
        workers = 0 if workers == 1 else workers  # 0: in this process
        heard = encode_recordings(recordings, mert.read, mean, batch_size=mert.batch_size, workers=workers)
        return ((number, Input("audio", feature), error) for number, feature, error in heard)

    def _see(self, images: Sequence[Item], modality: str | None, workers: int | None) -> Iterator[tuple]:
        captioner = self._captioner
        return _in_turn(lambda image: Input("text", captioner([image])[0]), images)

    @cached_property
    def _mert(self) -> "Mert":
        """Loaded when the first recording comes."""
        from clamplib.audio.mert import load_mert

        mert = load_mert(self._mert_path) if self._mert_path else load_mert()
        mert.model.to(self.device)
        return mert

    @cached_property
    def _captioner(self) -> "Captioner":
        """Loaded when the first image comes."""
        from clamplib.embedding.captions import Captioner

        captioner = Captioner(self._captioner_path, self.device)
        captioner([])  # loads its weights, whose lack is no image's fault
        return captioner


class Hit(NamedTuple):
    """Which of the items that were searched, counted from 0, and its cosine with the query."""

    number: int
    similarity: float


def _as_path(path: str | os.PathLike) -> os.PathLike:
    return Path(path) if isinstance(path, str) else path


def _read(items: Sequence[Item], modality: str | None, workers: int | None) -> Iterator[tuple]:
    read = partial(read_input, modality=modality)
    files = sum(not isinstance(item, str) for item in items)
    return _in_turn(read, items) if workers == 1 or files < FEW else run_jobs(read, items, workers=workers)


def _in_turn(read: Callable[[Item], Input], items: Sequence[Item]) -> Iterator[tuple]:
    for number, item in enumerate(items):
        try:
            yield number, read(item), None
        except Exception as error:  # one item's fault
            yield number, None, describe(error)


def _named(item: Item, number: int, error: str) -> str:
    """An error with its item in it."""
    name = show(item) if isinstance(item, os.PathLike) else f"item {number}"
    return error if name in error else f"{name}: {error}"


def _or_raise(outcomes: Iterable[tuple]) -> Iterator[tuple[int, np.ndarray]]:
    for number, feature, error in outcomes:
        if error:
            raise InputError(error)
        yield number, feature
