"""CLaMP 3 as a model of mteb, for its text tasks and for its audio benchmark, MAEB.

    model = CLaMP3MTEB("sander-wood/clamp3-saas")
    mteb.evaluate(model, tasks=mteb.get_benchmark("MAEB(v1)"))

mteb's own models decode recordings with torchcodec. This one decodes them as the rest of the library does. Some tasks
of MAEB decode recordings while they load, and these need `pip install "mteb[audio]"`. mteb also asks for those packages
when it is given a ModelMeta instead of a model.

saas and c2 read recordings through MERT-v1-95M, whose license, CC-BY-NC-4.0, does not allow commercial use.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from clamplib.audio import spectral
from clamplib.embedding.encoder import CLaMP3Encoder, Vectors
from clamplib.files import InputError, show
from clamplib.models.hub import CLAMP3_REPO, HUB_NAME, SHA256
from clamplib.retrieval.similarity import normalize

try:
    import mteb
    from datasets import Audio, Dataset
except ImportError as error:
    raise ImportError(
        'mteb needs extra packages; in a clone, run: pip install -c constraints.txt -e ".[mteb]"'
    ) from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput, PromptType

NAMES = {"saas": "sander-wood/clamp3-saas", "c2": "sander-wood/clamp3-c2", "mini": "clamplib/clamp3-mini"}
VARIANTS = {name: variant for variant, name in NAMES.items()}
MERT_PARAMETERS = 94_371_712
FLOAT32_BYTES = 4
FOREIGN_COLUMNS = ("image", "video")  # CLaMP 3 cannot embed them

# Facts for a ModelMeta, by its fields.
COMMON_FACTS = {
    "framework": ["PyTorch"],
    "max_tokens": float("inf"),  # texts of any length are read in segments
    "modalities": ["audio", "text"],
    "similarity_fn_name": "cosine",
    "use_instructions": False,
}
PUBLISHED_FACTS = {
    "embed_dim": 768,
    "license": "mit",  # of CLaMP 3, not of MERT: see above
    "n_parameters": 457_896_960 + MERT_PARAMETERS,
    "open_weights": True,
    "public_training_code": "https://github.com/sanderwood/clamp3",
    "public_training_data": "https://huggingface.co/datasets/sander-wood/m4-rag",
    "reference": f"https://huggingface.co/{CLAMP3_REPO}",
    "release_date": "2025-02-14",
    "training_datasets": set(),  # M4-RAG is not a data set of mteb
    "citation": """@misc{wu2025clamp3,
  title  = {CLaMP 3: Universal Music Information Retrieval Across Unaligned Modalities and Unseen Languages},
  author = {Shangda Wu and Zhancheng Guo and Ruibin Yuan and Junyan Jiang and Seungheon Doh and Gus Xia and
            Juhan Nam and Xiaobing Li and Feng Yu and Maosong Sun},
  year   = {2025},
  eprint = {2502.10362},
  archivePrefix = {arXiv}
}""",
}
MINI_FACTS = {
    "embed_dim": 192,
    "languages": ["eng-Latn", "deu-Latn", "fra-Latn", "spa-Latn", "ita-Latn", "zho-Hans", "jpn-Jpan"],
    "license": "mit",
    "n_parameters": 11_135_937,
    "open_weights": True,
    "public_training_code": None,  # it is in this repository
    "public_training_data": "https://github.com/cuthbertLab/music21",
    "release_date": None,
    "training_datasets": set(),  # neither music21's corpus nor OpenScore is a data set of mteb
}
UNKNOWN_FACTS = dict.fromkeys(("embed_dim", "languages", *PUBLISHED_FACTS))


class CLaMP3MTEB:
    """Gives a CLaMP3Encoder the methods of mteb's `EncoderProtocol`, for text and audio.

    Attributes:
        encoder: the CLaMP3Encoder.
        mteb_model_meta: the ModelMeta that mteb writes next to the results.
    """

    def __init__(
        self,
        model_name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        encoder: CLaMP3Encoder | None = None,
        variant: str | Path | None = None,
        **options: Any,
    ):
        """Loads a variant. The first three arguments are those that mteb passes.

        Args:
            model_name: a name of `NAMES`, or what `CLaMP3Encoder.from_pretrained` takes.
            revision: a branch, tag or commit of the hub, or the SHA-256 that the weights must have.
            device: where the model runs; None: the best device.
            dtype: torch.bfloat16 or float16 for mixed precision, or its name, under which mteb files results.
            encoder: an encoder that is loaded already; see `from_encoder`.
            variant: the variant to load if `model_name` does not name it, as with a local folder.
            options: other arguments of `CLaMP3Encoder.from_pretrained`, such as `mert`.

        Raises:
            FileNotFoundError: the weights are not there and cannot be fetched; the message says what to do.
            InputError: the weights are damaged, or their SHA-256 is not the revision.
        """
        variant = variant or VARIANTS.get(str(model_name), model_name)
        expected = revision if SHA256.fullmatch(revision or "") else None
        branch = None if expected else revision
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.encoder = encoder or CLaMP3Encoder.from_pretrained(variant, device, dtype, branch, **options)
        self.mteb_model_meta = clamp3_meta(variant, self.encoder, branch)
        digest = self.encoder.space["weights_sha256"]
        if expected not in (None, digest):
            raise InputError(f"{show(model_name)}: expected weights of SHA-256 {expected}, got {digest}")

    @classmethod
    def from_encoder(cls, encoder: CLaMP3Encoder) -> "CLaMP3MTEB":
        """Wraps an encoder that is loaded already."""
        return cls(encoder.space["variant"], dict(encoder.pretrained).get("revision"), encoder=encoder)

    def encode(
        self,
        inputs: "DataLoader[BatchedInput]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: "PromptType | None" = None,
        show_progress_bar: bool = True,
        precision: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeds the texts or the recordings of a task.

        A row with both gets the sum of its two vectors, scaled to length 1. mteb's CLAP and MuQ-MuLan add them too.

        Args:
            inputs: batches with the texts of a task under "text", or its recordings under "audio", or both.
            task_metadata: not used. CLaMP 3 reads the queries and documents of all tasks in the same way.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: not used.
            show_progress_bar: shows how many batches are done.
            precision: the type of the vectors, which is always float32.
            kwargs: not used. mteb passes its `batch_size` here, and `inputs` already has batches of this size.

        Returns:
            Unit vectors, float32 [N, D].

        Raises:
            InputError: a batch holds neither texts nor recordings, or holds images or videos; a recording cannot be
                read; another precision is asked for.
        """
        if precision not in (None, "float32"):
            raise InputError(f"expected the precision float32, got {precision}; see mteb's CompressionWrapper")
        vectors = [np.empty((0, self.encoder.dimension), np.float32)]
        for batch in tqdm(_undecoded(inputs), unit="batch", disable=not show_progress_bar):
            vectors.append(self._encode_batch(batch))
        return np.concatenate(vectors)

    def _encode_batch(self, batch: Mapping[str, Any]) -> np.ndarray:
        if any(name in batch for name in FOREIGN_COLUMNS) or not ("text" in batch or "audio" in batch):
            raise InputError(f"expected batches of text, audio or both, got the columns {', '.join(sorted(batch))}")
        vectors = []
        if "text" in batch:
            vectors.append(self.encoder.encode(list(batch["text"]), "text"))
        if "audio" in batch:
            vectors.append(self.encoder.encode([_recording(row) for row in batch["audio"]], "audio"))
        return vectors[0] if len(vectors) == 1 else normalize(sum(vectors))[0]

    def similarity(self, embeddings1: Vectors, embeddings2: Vectors) -> torch.Tensor:
        """Computes the cosines of all pairs of vectors, [A, D] or [D] and [B, D] or [D].

        Returns:
            float32 [A, B].
        """
        return torch.from_numpy(self.encoder.similarity(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Vectors, embeddings2: Vectors) -> torch.Tensor:
        """Computes the cosines float32 [N] of the vectors [N, D] of one list with those of another, in pairs."""
        return torch.from_numpy(self.encoder.similarity_pairwise(embeddings1, embeddings2))


def clamp3_meta(
    variant: str | Path, encoder: CLaMP3Encoder | None = None, revision: str | None = None
) -> mteb.models.ModelMeta:
    """Describes a variant for mteb, which writes the description next to the results and can load the model by it.

    mteb files results by name and revision. A local folder or file is called "local/NAME", and facts that are not
    known about it, such as its languages, are None.

    Args:
        variant: "saas", "c2", "mini", or anything else that `CLaMP3Encoder.from_pretrained` takes.
        encoder: the loaded variant, which gives the number of parameters, the dimension and the hash.
        revision: a branch, tag or commit of the hub; None: the SHA-256 of the encoder's weights, if it is given.
    """
    variant = str(variant)
    facts = COMMON_FACTS | {"revision": revision} | _facts(variant)
    if encoder:
        facts["revision"] = revision or encoder.space["weights_sha256"]
        facts["embed_dim"], facts["n_parameters"] = encoder.dimension, _parameters(encoder)
        facts["experiment_kwargs"] = _changes(encoder)
    parameters = facts["n_parameters"]
    megabytes = parameters and round(parameters * FLOAT32_BYTES / 2**20)
    return mteb.models.ModelMeta(loader=CLaMP3MTEB, memory_usage_mb=megabytes, **facts)


def _facts(variant: str) -> dict[str, Any]:
    """The facts about a variant that are known without its weights."""
    if variant in ("saas", "c2"):
        text_model = mteb.get_model_meta("FacebookAI/xlm-roberta-base")  # the text encoder was trained from it
        return PUBLISHED_FACTS | {"name": NAMES[variant], "languages": text_model.languages}
    if variant == "mini":
        return MINI_FACTS | {"name": NAMES[variant]}
    if HUB_NAME.fullmatch(variant) and not Path(variant).exists():
        return UNKNOWN_FACTS | {"name": variant, "reference": f"https://huggingface.co/{variant}"}
    path = Path(variant).resolve()
    return UNKNOWN_FACTS | {"name": f"local/{path.name}", "loader_kwargs": {"variant": str(path)}}


def _parameters(encoder: CLaMP3Encoder) -> int:
    """Counts the parameters of the model, and those of MERT if its recordings pass through MERT."""
    own = sum(parameter.numel() for parameter in encoder.loaded.model.parameters())
    return own if encoder.geometry.audio_hidden_size == spectral.SIZE else own + MERT_PARAMETERS


def _changes(encoder: CLaMP3Encoder) -> dict[str, str] | None:
    """The options that change the vectors. mteb files results with such options separately."""
    changes = {"dtype": encoder.precision, "mert": dict(encoder.pretrained).get("mert")}
    return {name: str(value) for name, value in changes.items() if value not in (None, "float32")} or None


def _undecoded(inputs: DataLoader) -> DataLoader:
    """The same batches with recordings as files, because datasets decodes them only with torchcodec."""
    dataset = inputs.dataset
    if not isinstance(dataset, Dataset) or not isinstance(dataset.features.get("audio"), Audio):
        return inputs
    files = dataset.cast_column("audio", Audio(decode=False))
    return DataLoader(files, inputs.batch_size, collate_fn=inputs.collate_fn, num_workers=inputs.num_workers)


def _recording(row: Any) -> Any:
    """A recording as the encoder takes it: the bytes or the path of a file, or the row itself."""
    if isinstance(row, Mapping) and "bytes" in row:
        return row["bytes"] or Path(row["path"])
    return row
