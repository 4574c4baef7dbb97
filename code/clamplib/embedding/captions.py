"""Images -> captions, by which an image finds music as a text does.

BLIP writes the captions (Li et al., "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language
Understanding and Generation", 2022; the implementation is that of transformers). A folder of weights contains

    config.json
    model.safetensors or pytorch_model.bin
    preprocessor_config.json or processor_config.json, tokenizer.json, tokenizer_config.json
"""

import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor

from clamplib.embedding.reading import BLIP_REPO
from clamplib.files import InputError, cause_of, read_object, show
from clamplib.models.checkpoints import check_bytes, read_shapes
from clamplib.models.configs import CONFIG_NAME, check_sizes
from clamplib.models.hub import fetch_folder, fetching, weights_sha256

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise ImportError(
        'images need an extra package; in a clone, run: pip install -c constraints.txt -e ".[images]"'
    ) from error

BLIP_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first one that is there
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
BATCH_SIZE = 8
BEAMS, MAX_TOKENS = 3, 50

Picture = str | os.PathLike | bytes | Image.Image


class Captioner:
    """Writes captions with BLIP. Nothing is fetched or loaded before the first call.

    Args:
        path_or_name: a folder of weights, or its name on the hub.
        device: where the model runs.
    """

    def __init__(self, path_or_name: str | Path = BLIP_REPO, device: str | torch.device = "cpu"):
        self.path_or_name = path_or_name
        self.device = torch.device(device)

    def __call__(self, images: Sequence[Picture]) -> list[str]:
        """Writes a caption for each image, the same one every time.

        Args:
            images: paths, the bytes of files, or images of PIL.

        Raises:
            FileNotFoundError: the weights are not there and cannot be fetched.
            InputError: an item is not an image, or the weights are damaged.
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
        """The SHA-256 of the weights, which identifies the captions."""
        return weights_sha256(_find_weights(self._folder))

    @cached_property
    def _folder(self) -> Path:
        folder = Path(self.path_or_name)
        if not folder.is_dir():
            folder = _fetch_blip(str(self.path_or_name))
        if not (folder / CONFIG_NAME).is_file() or not _find_weights(folder):
            files = f"{CONFIG_NAME} and {' or '.join(BLIP_WEIGHTS)}"
            raise FileNotFoundError(f"{show(folder)}: expected {files} of {BLIP_REPO} (about 990 MB), put them there")
        return folder

    @cached_property
    def _parts(self) -> tuple[BlipProcessor, BlipForConditionalGeneration]:
        folder = self._folder
        config = _read_blip_config(folder / CONFIG_NAME)
        weights = _find_weights(folder)
        read_shapes(weights)  # names damaged weights
        try:
            with torch.device("meta"):  # takes no memory
                sketch = BlipForConditionalGeneration(BlipConfig.from_dict(config))
            check_bytes(sketch, weights)
            model = BlipForConditionalGeneration.from_pretrained(folder, trust_remote_code=False)
            processor = BlipProcessor.from_pretrained(folder, trust_remote_code=False)
            size, side = processor.image_processor.size, model.config.vision_config.image_size
            if (size["height"], size["width"]) != (side, side):  # an image is brought to this size before all else
                raise ValueError(f"images must be brought to {side} x {side}, not to {size}")
        except InputError:
            raise
        except Exception as error:  # half a dozen libraries raise their own
            raise InputError(
                f"{show(folder)}: expected all files of {BLIP_REPO}, undamaged ({cause_of(error)})"
            ) from error
        return processor, model.float().eval().to(self.device)


def open_image(image: Picture) -> Image.Image:
    """Opens an image, turns it upright and puts it on white.

    Args:
        image: a path, the bytes of a file, or an image of PIL.

    Returns:
        The image in RGB.

    Raises:
        InputError: it is not an image in PNG, JPEG or WebP.
    """
    name = "this image" if isinstance(image, bytes | Image.Image) else show(image)
    try:
        if not isinstance(image, Image.Image):
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: expected an image, PNG, JPEG or WebP ({type(error).__name__}: {error})") from error
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


def _read_blip_config(path: Path) -> dict:
    config = read_object(path, "a BLIP model")
    if config.get("model_type") != "blip":
        got = config.get("model_type")
        raise InputError(f"{show(path)}: expected a model of the type blip, such as {BLIP_REPO}, got {got!r}")
    try:
        check_sizes(config)
    except ValueError as error:
        raise InputError(f"{show(path)}: expected the sizes of a BLIP model ({error})") from error
    return config


def _find_weights(folder: Path) -> Path | None:
    for name in BLIP_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    return None


def _fetch_blip(name: str) -> Path:
    """Fetches the folder of weights from the hub or its cache, in safetensors format if the hub has it."""
    remedy = (
        f"Run once with a network, or put the files of {BLIP_REPO} (about 990 MB) into a folder and name it as the "
        "captioner."
    )
    with fetching(f"{show(name)} is not a folder,", remedy):
        folder = fetch_folder(name, None, ["*.json", "*.txt", BLIP_WEIGHTS[0]])
        if not _find_weights(folder):
            fetch_folder(name, None, [BLIP_WEIGHTS[1]])
        return folder
