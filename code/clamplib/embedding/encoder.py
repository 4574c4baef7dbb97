"""Embeds anything in one call.

encoder = CLaMP3Encoder.from_pretrained("mini")
vectors = encoder.encode(["a slow air", Path("air.musicxml"), Path("air.mid")])  # float32 [3, D]
encoder.search("a slow air", vectors)
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from clamplib.audio import spectral
from clamplib.audio.recordings import encode_recordings
from clamplib.embedding.encoding import clamp3_encoders, encode_each
from clamplib.embedding.reading import (
    IMAGE_SUFFIXES,
    SUFFIXES,
    Content,
    Reader,
    as_array,
    as_list,
    is_image,
    is_item,
    is_numbers,
    is_recording,
    plain_item,
    read_ahead,
    refuse_image,
)
from clamplib.files import InputError, show
from clamplib.jobs import LIMITS, Limits, Outcome, run_in_turn
from clamplib.models import distributed
from clamplib.models.geometry import Geometry
from clamplib.models.loading import LoadedModel, save_variant
from clamplib.models.settings import VARIANT_VARIABLE, find_variant
from clamplib.models.variants import FoundModel
from clamplib.retrieval.similarity import normalize, search, unit_mean
from clamplib.space import front_of

if TYPE_CHECKING:  # extras: text, scores and MIDI do without them
    from clamplib.audio.mert import FoundMert, Mert
    from clamplib.embedding.captions import Captioner

SLOW_CHUNK = 8  # items that another model works on first, encoded together: an interruption costs little

Item = Any  # see reading
Items = Item | Sequence[Item]
Vectors = np.ndarray | torch.Tensor  # [N, D], or [D] for one


class CLaMP3Encoder:
    """Embeds texts, scores, MIDI, recordings and images, which it converts to what CLaMP 3 takes."""

    def __init__(
        self,
        loaded: LoadedModel | FoundModel,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        mert: str | Path | None = None,
        captioner: str | Path | None = None,
        limits: Limits | None = LIMITS,
    ):
        """Takes a model; `from_pretrained` loads one.

        Args:
            loaded: the model. One that is only found is loaded when it is needed.
            device: where the model runs; None: the best device there is.
            dtype: torch.bfloat16 or torch.float16 for mixed precision, or torch.int8, which is for CPUs.
            mert: weights of MERT for recordings, a folder or a name on the hub; None: the published ones.
            captioner: weights of BLIP, which writes the captions that images are encoded by; None: images are refused.
            limits: of time and memory for reading one file; None: none.
        """
        self._model, self.dtype = loaded, dtype
        self._mert_path, self._captioner_path = mert, captioner
        self.device = torch.device(device) if device else distributed.own_device()
        self.pretrained: tuple = ()  # how `from_pretrained` makes the same encoder in another process
        self._reader = Reader(loaded.geometry, limits)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model, on the encoder's device."""
        return self._model.load().prepare(self.device, self.dtype)

    @property
    def geometry(self) -> Geometry:
        """The sizes of the model."""
        return self._model.geometry

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
        limits: Limits | None = LIMITS,
        load_now: bool = True,
    ) -> "CLaMP3Encoder":
        """Loads a variant: "saas", "c2", "mini", a folder, a .pth, or owner/name of the hub.

        Weights that are missing are fetched with a progress bar, and an interrupted download is resumed.

        Args:
            name: the variant; None: that of the environment variable CLAMP3_VARIANT, else of line 66 of code/config.py.
            revision: a branch, tag or commit of the hub.
            weights_folder: where weights that are not in a folder of their own lie; None: code/ of this repository.
            device, dtype, mert, captioner, limits: as for the class.
            load_now: loads the model before this returns. Else it is loaded when it is needed, which it may never be
                where vectors are cached; damaged weights are found only then.

        Raises:
            FileNotFoundError: the weights are missing and cannot be fetched; the message says where to put them.
            InputError: the weights are damaged, or of other sizes than the settings say.
        """
        name = name or os.environ.get(VARIANT_VARIABLE) or None
        found = find_variant(name, weights_folder=weights_folder, revision=revision)
        others = {"mert": mert, "captioner": captioner, "limits": limits}
        encoder = cls(found, device=device, dtype=dtype, **others)
        if load_now:
            _ = encoder.loaded
        options = {"name": name, "dtype": dtype, "revision": revision, "weights_folder": weights_folder, **others}
        encoder.pretrained = tuple(options.items())
        return encoder

    @property
    def dimension(self) -> int:
        """The size D of a vector."""
        return self.geometry.clamp3_hidden_size

    def get_sentence_embedding_dimension(self) -> int:
        """The size D of a vector, by the name of sentence-transformers; `get_embedding_dimension` is its newer name."""
        return self.dimension

    get_embedding_dimension = get_sentence_embedding_dimension

    @cached_property
    def space(self) -> dict:
        """The fields of space.json for these vectors."""
        space = {**self._model.space, "kind": "clamp3 global"}
        return space if self.precision == "float32" else {**space, "precision": self.precision}

    @property
    def space_id(self) -> str:
        """Identifier of the embedding space. Vectors of two spaces cannot be compared."""
        return f"clamp3-{Path(self.space['variant']).name}-{self.space['weights_sha256'][:16]}"

    @property
    def precision(self) -> str:
        """The precision in which the model computes: float32, bfloat16, float16 or int8."""
        return str(self.dtype or torch.float32).removeprefix("torch.")

    @property
    def audio_front_id(self) -> str:
        """Identifier of the front end that hears recordings."""
        return "spectral" if self._spectral else front_of(self._found_mert.space)["front"]

    def front_id(self, source: str | os.PathLike) -> str:
        """Identifier of the front end that a file needs (MERT, BLIP), or "" if it needs none."""
        if is_recording(source):
            return self.audio_front_id
        return f"blip-{self._captioner.weights_sha256[:16]}" if self._captioner_path and is_image(source) else ""

    @property
    def limits(self) -> Limits | None:
        """The limits of time and memory for reading one file."""
        return self._reader.limits

    def reads_by_model(self, item: Item) -> bool:
        """Whether reading an item takes a model (MERT, BLIP)."""
        return (is_recording(item) and not self._spectral) or bool(self._captioner_path and is_image(item))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the files that a folder is searched for. Images are among them if there is a captioner."""
        return SUFFIXES + IMAGE_SUFFIXES if self._captioner_path else SUFFIXES

    @property
    def _spectral(self) -> bool:
        """Whether the model takes spectral features, as `mini` does, and not MERT's."""
        return self.geometry.audio_hidden_size == spectral.SIZE

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
        """Embeds one item or a list of items of any kinds (see `reading`), with the keywords of sentence-transformers.

        Args:
            modality: of all items: text, score, midi, audio or image; None: what each item is.
            batch_size: segments of full length in a batch; None: what suits the device.
            show_progress_bar: shows how many items are done.
            convert_to_tensor: returns a tensor on the encoder's device.
            convert_to_numpy: without it, and without `convert_to_tensor`, a list of tensors comes back.
            normalize_embeddings: gives each vector length 1, so that dot products are cosines.
            workers: processes that read and convert; None: one per core where the items are many.

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
        """Gives the last hidden states of each item, float32 [T, H].

        A row stands for a token of a text, a bar of a score, some messages of MIDI, or five seconds of a recording.
        """
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
    ) -> Iterator[Outcome]:
        """Embeds items of any kinds, each with its own outcome, in no particular order.

        Args:
            pooled: gives vectors [1, D]; else the last hidden states [1, T, H].
            modality, batch_size, workers: as for `encode`.

        Yields:
            Outcomes whose value is float32 [1, D] or [1, T, H].
        """
        if not items:
            return
        encoders = clamp3_encoders(self.loaded, pooled, self.dtype)
        for numbers, readings, at_once in self._readings(list(map(plain_item, items)), modality, workers):
            options = {"batch_size": batch_size, "at_once": at_once, "name": partial(_name, items, numbers)}
            for place, value, error in encode_each(readings, encoders, self.loaded.tokenizer, **options):
                number = numbers[place]
                yield Outcome(number, value, error and _named(_name(items, numbers, place), error))

    def encode_readings(self, readings: Iterable[Outcome]) -> Iterator[Outcome]:
        """Embeds what `read_each` gives: outcomes whose value is float32 [1, D], in no particular order."""
        encoders = clamp3_encoders(self.loaded, True, self.dtype)
        return encode_each(readings, encoders, self.loaded.tokenizer)

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
        """Finds the closest of `among` for each query, closest first.

        Raises:
            InputError: there is nothing to search among.
        """
        among = self._unit(among)
        if not len(among):
            raise InputError("expected at least one item to search among")
        rows, similarities = search(self._unit(query), among, top_k)
        return [list(map(Hit, *found)) for found in zip(rows.tolist(), similarities.tolist(), strict=True)]

    def classify(self, items: Items | Vectors, labels: Sequence[str] | Mapping[str, Sequence[str]]) -> list[str]:
        """Gives each item the label whose text is closest, without training.

        Args:
            labels: the texts themselves, or several prompts for each label, whose directions are averaged.
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
        """Computes the CLaMP 3 score: the mean cosine of the pairs a[i] and b[i].

        Args:
            group: compares the means of the two sets in place of pairs; the sets may be of any size.

        Raises:
            InputError: the lists of pairs are of different lengths, or a list is empty.
        """
        if group:
            (own, _), (other, _) = unit_mean(self._vectors(a)), unit_mean(self._vectors(b))
            return float(own @ other)
        similarities = self.similarity_pairwise(a, b)
        if not len(similarities):
            raise InputError("expected at least one pair of items, got none")
        return float(similarities.mean())

    def caption(self, image: str | os.PathLike | bytes) -> str:
        """Writes the caption that an image is encoded by."""
        if not self._captioner_path:
            refuse_image(image)
        return self._captioner([image])[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained`, every --variant and SentenceTransformer take; weights are float16."""
        loaded = self._model.load() if self.dtype is torch.int8 else self.loaded  # int8 is not saved
        save_variant(folder, loaded.model, loaded.tokenizer, loaded.geometry)

    def push_to_hub(self, repo_id: str, *, private: bool = False, revision: str | None = None) -> str:
        """Saves the variant on the hub, where `from_pretrained` finds it by `repo_id`, and returns its address."""
        from huggingface_hub import HfApi

        hub = HfApi()
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
    ) -> Iterator[Outcome]:
        """Reads items as the encoders take them, in no particular order: outcomes whose value is a Reading."""
        for numbers, readings, _ in self._readings(list(map(plain_item, items)), modality, workers):
            for place, reading, error in readings:
                yield Outcome(numbers[place], reading, error)

    def _readings(
        self, items: Sequence[Item], modality: str | None, workers: int | None
    ) -> list[tuple[list[int], Iterator[Outcome], int | None]]:
        """For each kind of front end its items' numbers, what it reads, and how many to encode at once."""
        heard, seen, read = [], [], []
        for number, item in enumerate(items):
            if not self._spectral and is_recording(item, modality):
                heard.append(number)
            elif self._captioner_path and is_image(item, modality):
                seen.append(number)
            else:
                read.append(number)
        ways = []
        if read:
            some = [items[number] for number in read]
            ways.append((read, read_ahead(self._reader, some, modality, workers=workers), None))
        if heard:
            ways.append((heard, self._hear([items[number] for number in heard], workers), SLOW_CHUNK))
        if seen:
            ways.append((seen, self._see([items[number] for number in seen]), SLOW_CHUNK))
        return ways

    def _hear(self, recordings: Sequence[Item], workers: int | None) -> Iterator[Outcome]:
        mert = self._mert
        mean = partial(mert.encode, mean=True)
        workers = 0 if workers == 1 else workers  # 0: in this process
        heard = encode_recordings(recordings, mert.read, mean, batch_size=mert.batch_size, workers=workers)
        return map(self._as_reading, heard)

    def _as_reading(self, outcome: Outcome) -> Outcome:
        """MERT's features of a recording, as the audio encoder takes them."""
        if outcome.error:
            return outcome
        try:
            return Outcome(outcome.number, self._reader.sequence(Content("audio", outcome.value)))
        except InputError as error:
            return Outcome(outcome.number, error=str(error))

    def _see(self, images: Sequence[Item]) -> Iterator[Outcome]:
        captioner = self._captioner
        return run_in_turn(lambda image: self._reader.sequence(Content("text", captioner([image])[0])), images)

    @cached_property
    def _found_mert(self) -> "FoundMert":
        from clamplib.audio.mert import find_mert

        return find_mert(self._mert_path) if self._mert_path else find_mert()

    @cached_property
    def _mert(self) -> "Mert":
        """Loaded when the first recording comes."""
        mert = self._found_mert.load()
        mert.model.to(self.device)
        return mert

    @cached_property
    def _captioner(self) -> "Captioner":
        """Loaded when the first image comes."""
        from clamplib.embedding.captions import Captioner

        captioner = Captioner(self._captioner_path, self.device)
        captioner([])  # loads the weights now: if they are missing, that is not an error of one image
        return captioner


class Hit(NamedTuple):
    """Which of the items that were searched, counted from 0, and its cosine with the query."""

    number: int
    similarity: float


def _as_path(path: str | os.PathLike) -> os.PathLike:
    return Path(path) if isinstance(path, str) else path


def _name(items: Sequence[Item], numbers: Sequence[int], place: int) -> str:
    """What a message calls the item whose number is at a place."""
    number = numbers[place]
    return show(items[number]) if isinstance(items[number], os.PathLike) else f"item {number}"


def _named(name: str, error: str) -> str:
    """An error with its item in it."""
    return error if name in error else f"{name}: {error}"


def _or_raise(outcomes: Iterable[tuple]) -> Iterator[tuple[int, np.ndarray]]:
    for number, feature, error in outcomes:
        if error:
            raise InputError(error)
        yield number, feature
