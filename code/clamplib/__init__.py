"""CLaMP 3: sheet music, MIDI, audio and text in 100 languages in one vector space."""

__version__ = "0.1.0"
