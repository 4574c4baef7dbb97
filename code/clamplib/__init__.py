"""CLaMP 3: sheet music, MIDI, audio and text in 100 languages in one vector space."""

import os
import sys

__version__ = "0.1.0"
__all__ = ["CLaMP3Encoder", "Waveform"]


# Switches off what dependencies report to their makers. They read these variables when they are imported or started.
TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "WANDB_ERROR_REPORTING": "false"}
if "HF_HUB_DISABLE_TELEMETRY" not in os.environ and "huggingface_hub.constants" in sys.modules:
    sys.modules["huggingface_hub.constants"].HF_HUB_DISABLE_TELEMETRY = True  # it was imported before
for _name, _value in TELEMETRY.items():
    os.environ.setdefault(_name, _value)  # a user's own choice stays


def __getattr__(name: str):
    """The names above and CLaMP3Module, imported when they are asked for: the encoder brings torch with it."""
    if name == "CLaMP3Encoder":
        from clamplib.embedding.encoder import CLaMP3Encoder

        return CLaMP3Encoder
    if name == "CLaMP3Module":
        from clamplib.embedding.sentence_transformer import CLaMP3Module

        return CLaMP3Module
    if name == "Waveform":
        from clamplib.audio import Waveform

        return Waveform
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
