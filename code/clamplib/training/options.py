"""The command line of the training scripts. It is apart from what they run, which imports torch."""

import argparse
from pathlib import Path

from clamplib.command import make_parser


def training_parser(doc: str, modality: str | None = None) -> argparse.ArgumentParser:
    """Makes the command line of a training script.

    Args:
        doc: the script's docstring (see `command.help_of`).
        modality: "symbolic" or "audio" for CLaMP 3; None for M3.
    """
    parser = make_parser(doc)
    parser.add_argument(
        "--config",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of assignments that replace those of config.py; a later file replaces those of an earlier one",
    )
    parser.add_argument("--epochs", type=int, help=f"replaces {settings_prefix(modality)}_NUM_EPOCH")
    if modality:
        parser.add_argument("--freeze_text", action="store_true", help="sets FREEZE_TEXT: the text encoder stays as is")
    return parser


def settings_prefix(modality: str | None) -> str:
    """Returns what the names of a model's settings begin with."""
    return "CLAMP3" if modality else "M3"
