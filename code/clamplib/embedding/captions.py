"""Images -> captions, so that a picture finds music as a sentence about it would.

The captions are BLIP's (Li et al., "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language
Understanding and Generation", 2022), by transformers. A folder of weights holds

    config.json
    model.safetensors or pytorch_model.bin
    preprocessor_config.json or processor_config.json, tokenizer.json, tokenizer_config.json
"""

import io
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import huggingface_hub
import torch
from transformers import BlipForConditionalGeneration, BlipProcessor

from clamplib.embedding.reading import BLIP_REPO
from clamplib.files import InputError, show
from clamplib.models.checkpoints import weights_sha256

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise ImportError('images need a package of their own: pip install "clamplib[images]"') from error

CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
FORMATS = ("PNG", "JPEG", "WEBP")
BATCH_SIZE = 8
BEAMS, MAX_TOKENS = 3, 50

Picture = str | os.PathLike | bytes | Image.Image


class Captioner:
    """BLIP. Nothing is fetched or read before the first call."""

    def __init__(self, path_or_name: str | Path = BLIP_REPO, device: str | torch.device = "cpu"):
        """A folder of weights, or their name on the hub."""
        self.path_or_name, self.device = path_or_name, torch.device(device)

    def __call__(self, images: Sequence[Picture]) -> list[str]:
        """The caption of each image (a path, the bytes of a file, or PIL's), the same every time.

        InputError for what is no image and for damaged weights, FileNotFoundError where there are none.
        """
        processor, model = self._parts
        captions = []
        for start in range(0, len(images), BATCH_SIZE):
            pictures = [open_image(image) for image in images[start : start + BATCH_SIZE]]
            inputs = processor(images=pictures, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                tokens = model.generate(**inputs, num_beams=BEAMS, do_sample=False, max_new_tokens=MAX_TOKENS)
            captions += processor.batch_decode(tokens, skip_special_tokens=True)
        return [caption.strip() for caption in captions]

    @cached_property
    def weights_sha256(self) -> str:
        """What tells its captions from another's."""
        return weights_sha256(next(self._folder / name for name in WEIGHTS if (self._folder / name).is_file()))

    @cached_property
    def _folder(self) -> Path:
        folder = Path(self.path_or_name)
        if not folder.is_dir():
            folder = _fetch(str(self.path_or_name))
        if not (folder / CONFIG).is_file() or not _has_weights(folder):
            files = f"{CONFIG} and {' or '.join(WEIGHTS)}"
            raise FileNotFoundError(f"{show(folder)}: expected {files} of {BLIP_REPO} (about 990 MB), put them there")
        return folder

    @cached_property
    def _parts(self) -> tuple[BlipProcessor, BlipForConditionalGeneration]:
        folder = self._folder
        _check_kind(folder / CONFIG)
        try:
            model = BlipForConditionalGeneration.from_pretrained(folder).float().eval().to(self.device)
            return BlipProcessor.from_pretrained(folder), model
        except Exception as error:  # from half a dozen libraries
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{show(folder)}: expected all files of {BLIP_REPO}, whole ({reason})") from error


def open_image(image: Picture) -> Image.Image:
    """A picture the right way up, what is transparent white: RGB. InputError for what is no PNG, JPEG or WebP."""
    name = "this image" if isinstance(image, bytes | Image.Image) else show(image)
    try:
        if not isinstance(image, Image.Image):
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: expected an image, PNG, JPEG or WebP ({type(error).__name__}: {error})") from error
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def _check_kind(path: Path) -> None:
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{show(path)}: expected the JSON of a BLIP model ({error})") from error
    if kind != "blip":
        raise InputError(f"{show(path)}: expected a model of the type blip, got {kind!r}; such is {BLIP_REPO}")


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def _fetch(name: str) -> Path:
    """The folder of weights from the hub or its cache; PyTorch's format only where there is no other."""
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.txt", WEIGHTS[0]]))
        if not _has_weights(folder):
            huggingface_hub.snapshot_download(name, allow_patterns=[WEIGHTS[1]])
        return folder
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FileNotFoundError(
            f"{show(name)} is no folder, is not in the cache of huggingface_hub and could not be fetched ({reason}). "
            f"Run once with a network, or put the files of {BLIP_REPO} (about 990 MB) into a folder and name that "
            "as the captioner."
        ) from error
