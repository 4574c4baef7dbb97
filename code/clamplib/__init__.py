"""CLaMP 3: sheet music, MIDI, audio and text in 100 languages in one vector space."""

__version__ = "0.1.0"
__all__ = ["CLaMP3Encoder", "Waveform"]


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
