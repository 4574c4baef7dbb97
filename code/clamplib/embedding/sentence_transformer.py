"""CLaMP 3 as a module of sentence-transformers, so that its evaluators, losses and trainer work with CLaMP 3.

model = SentenceTransformer("folder of a variant", trust_remote_code=True)
vectors = model.encode(["a slow air", Path("air.mid")])  # as of CLaMP3Encoder.encode: unit vectors, float32 [2, D]

A folder's modules.json names CLaMP3Module and, after it, sentence-transformers' own Normalize. sentence-transformers
imports a class of another package only with `trust_remote_code=True`, even if it is installed and the folder is local.
With that option the modules.json of a folder may also name a class in the folder, whose code is run. For a folder from
someone else, SentenceTransformer(modules=[CLaMP3Module.load("folder"), Normalize()]) makes the same model without it.

A batch keeps the segments of an item together, so that losses can cut it between items. Shapes: B items, S segments of
the longest item, L rows of the longest segment.
"""

import os
import reprlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from clamplib.embedding.encoder import CLaMP3Encoder, Item
from clamplib.embedding.encoding import Encoder, clamp3_encoders, segment_spans
from clamplib.embedding.sequences import text_tokens
from clamplib.files import InputError, show
from clamplib.models.encoders import pad
from clamplib.models.loading import LoadedModel, save_variant
from clamplib.models.variants import load_clamp3

try:
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        "SentenceTransformer needs an extra package; in a clone, run: "
        'pip install -c constraints.txt -e ".[sentence-transformers]"'
    ) from error

INPUT_NAMES = {"text": "input_ids", "symbolic": "input_values", "audio": "input_features"}  # as the trainer calls them
SEGMENTS = 128  # in one pass of an encoder, so that an item of hours fits into memory


class CLaMP3Module(InputModule):
    """Reads texts, scores, MIDI and recordings, and computes their global vectors."""

    config_keys = ["max_seq_length"]

    def __init__(self, loaded: LoadedModel):
        super().__init__()
        self.loaded, self.model = loaded, loaded.model

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        *,
        backend: str = "torch",
        model_kwargs: dict | None = None,
        processor_kwargs: dict | None = None,
        config_kwargs: dict | None = None,
        **options,
    ) -> "CLaMP3Module":
        """Loads a variant's folder.

        Args:
            model_name_or_path: the folder, or its name on the hub.
            subfolder: a folder in it that holds the variant.
            token: gives access to a private folder on the hub.
            cache_folder: the folder for files from the hub.
            revision: a branch, tag or commit of the hub.
            local_files_only: takes files of the hub only from the cache.
            backend, model_kwargs, processor_kwargs, config_kwargs: refused; they are for models of transformers.
            options: ignored; other arguments that SentenceTransformer passes to every module.

        Raises:
            FileNotFoundError: a file of the variant is not there.
            InputError: a file of the variant is damaged, or the weights are of another geometry.
            ValueError: an option is given that CLaMP 3 cannot follow.
        """
        if backend != "torch" or model_kwargs or processor_kwargs or config_kwargs:
            raise ValueError(
                "CLaMP 3 runs in torch and takes no model_kwargs, processor_kwargs or config_kwargs; "
                "for another precision, convert the loaded model, as with model.bfloat16()"
            )
        folder = cls.load_dir_path(model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        if folder is None:
            raise FileNotFoundError(
                f"{Path(model_name_or_path, subfolder)}: expected a variant's folder, there is none"
            )
        return cls(load_clamp3(folder, weights_folder=folder))

    def save(self, output_path: str, *args, **options) -> None:
        """Writes the complete folder of a variant, with exactly the model's weights: safetensors in float32."""
        save_variant(output_path, self.model, self.loaded.tokenizer, self.loaded.geometry, dtype=torch.float32)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The text encoder's tokenizer, as transformers has it."""
        own = self.loaded.tokenizer
        names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        tokens = {name: own.settings[name] for name in names if name in own.settings}
        return PreTrainedTokenizerFast(tokenizer_object=own.tokenizer, **tokens)

    @property
    def max_seq_length(self) -> int:
        """Tokens in a segment of text. A longer text is read in several segments: nothing is cut off."""
        return self.loaded.geometry.max_text_length

    @property
    def modalities(self) -> list[str]:
        """The modalities that sentence-transformers may pass. It has no name for scores and MIDI, which are paths."""
        return ["text", "audio"]

    def get_embedding_dimension(self) -> int:
        """D, the size of a vector."""
        return self.loaded.geometry.clamp3_hidden_size

    def preprocess(self, inputs: Sequence[Item], prompt: str | None = None, **options) -> dict[str, torch.Tensor]:
        """Reads items and cuts them into segments.

        Args:
            inputs: items as CLaMP3Encoder takes them. A str that is the path of a recording is that recording, as
                everywhere in sentence-transformers; every other str is a text.
            prompt: words put before each text.
            options: ignored; other arguments that SentenceTransformer passes to every module.

        Returns:
            For each encoder that the items need, by its name in INPUT_NAMES: its inputs [B, S, L, ...], their masks
            [B, S, L] as "NAME_mask", and the share of each segment in its item [B, S] as "NAME_weights". All three are
            0 where an item has no segment.

        Raises:
            InputError: an item cannot be read. The message names it.
        """
        items = [self._item(item, prompt) for item in inputs]
        sequences = {modality: {} for modality in INPUT_NAMES}
        for number, reading, error in self._reader.read_each(items, workers=1):
            if error:
                raise InputError(_named(inputs[number], error))
            rows = reading.sequence
            if reading.encoder == "text":
                rows = text_tokens(rows, self.loaded.tokenizer)
            sequences[reading.encoder][number] = rows
        encoders = clamp3_encoders(self.loaded, True)
        features = {}
        for modality, name in INPUT_NAMES.items():
            if sequences[modality]:
                segments = _segments(sequences[modality], len(items), encoders[modality])
                features[name], features[f"{name}_mask"], features[f"{name}_weights"] = segments
        return features

    def forward(self, features: dict[str, torch.Tensor], **options) -> dict[str, torch.Tensor]:
        """Adds "sentence_embedding" [B, D], not normalized, to what `preprocess` gave."""
        vectors = 0
        for modality, name in INPUT_NAMES.items():
            weights = features.get(f"{name}_weights")
            if weights is not None and weights.any():  # a loss may have cut off all items of an encoder
                vectors = vectors + self._vectors(modality, features[name], features[f"{name}_mask"], weights)
        features["sentence_embedding"] = vectors
        return features

    def _vectors(self, modality: str, inputs: torch.Tensor, masks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The weighted mean of each item's segments [B, D]. It is 0 for items of other encoders."""
        used = weights > 0
        encode = getattr(self.model, f"get_{modality}_features")
        passes = zip(inputs[used].split(SEGMENTS), masks[used].split(SEGMENTS), strict=True)
        segments = torch.cat([encode(rows, mask, get_global=True) for rows, mask in passes])  # [used, D]
        weighted = segments * weights[used][:, None].to(segments.dtype)
        return weighted.new_zeros(len(weights), weighted.shape[1]).index_add(0, used.nonzero()[:, 0], weighted)

    def _item(self, item: Item, prompt: str | None) -> Item:
        if not isinstance(item, str):
            return item
        if infer_modality(item, self.modalities) == "audio":
            return Path(item)
        return (prompt or "") + item

    @cached_property
    def _reader(self) -> CLaMP3Encoder:
        return CLaMP3Encoder(self.loaded, device=self.model.device)


def _segments(
    sequences: dict[int, np.ndarray], count: int, encoder: Encoder
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs [B, S, L, ...], masks [B, S, L] and weights [B, S] of the sequences [n, ...] of some of B items."""
    numbers = []
    places = []
    segments = []
    weights = []
    for number, rows in sequences.items():
        for place, span in enumerate(segment_spans(len(rows), encoder.max_length)):
            numbers.append(number)
            places.append(place)
            segments.append(rows[span.start : span.stop])
            weights.append(span.new / len(rows))
    inputs, masks = pad(segments, encoder.padding)

    def by_item(values: torch.Tensor) -> torch.Tensor:
        table = values.new_zeros(count, max(places) + 1, *values.shape[1:])
        table[numbers, places] = values
        return table

    return by_item(inputs), by_item(masks), by_item(torch.tensor(weights))


def _named(item: Item, error: str) -> str:
    """An error that names its item. A batch is sorted by length, so that the item's number would mislead."""
    name = show(item) if isinstance(item, os.PathLike) else reprlib.repr(item)
    return error if name in error else f"{name}: {error}"
