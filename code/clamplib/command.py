"""What scripts share: of the conversions under preprocessing/ the command line, and folder in, folder out."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clamplib.files import InputError, output_paths, run_batch, show, walk


def positive(text: str) -> int:
    """A whole number above 0, as the `type` of an option of any script."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def add_variant(parser: argparse._ActionsContainer) -> None:
    """The option that names the weights, as every command has it."""
    parser.add_argument(
        "--variant",
        help="saas, c2, mini, a folder of weights, or owner/name of the hub; default: that of the environment variable "
        "CLAMP3_VARIANT, else that of line 66 of code/config.py",
    )


def batch_parser(doc: str, input_dir: str, ending: str) -> argparse.ArgumentParser:
    """The command line; `doc` is the script's docstring: a line that describes it, then an example."""
    description, _, epilog = doc.strip().partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input_dir", nargs="?", default=input_dir, help="a folder with its sub-folders, or a file")
    parser.add_argument("output_dir", nargs="?", help=f"default: the name of the input with {ending} behind")
    parser.add_argument("--workers", type=int, help="processes, here or on Ray (Dask: all it has); default: one a core")
    parser.add_argument("--backend", choices=("ray", "dask"), help="a cluster; default: processes of its own")
    parser.set_defaults(ending=ending)
    return parser


def convert_folder(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    convert: Callable[[os.PathLike, Path], str | None],
    suffixes: Sequence[str],
    suffix: str,
    split: Callable[[Path], Sequence[os.PathLike]] | None = None,
) -> int:
    """convert(source, target) for all files with `suffixes`, prints the counts, gives the exit status.

    `split` gives the sources within one file, each with the file it stands for in `alias`.
    """
    root = Path(args.input_dir)
    output_root = Path(args.output_dir) if args.output_dir else _beside(root, args.ending)
    try:
        if output_root.is_file() or suffix in suffixes and output_root.resolve() == root.resolve():
            raise InputError(f"{show(output_root)}: expected an output folder other than the input")
        own = _within(root, output_root)  # outputs of an earlier run are no inputs
        files = [path for path in walk(root, suffixes) if own not in path.parents]
        sources = [source for path in files for source in split(path)] if split else files
        aliases = [getattr(source, "alias", source) for source in sources]
        targets = output_paths(aliases, root, output_root, suffix)
        report = run_batch(
            convert,
            sources,
            targets,
            output_root=output_root,
            workers=args.workers,
            backend=args.backend,
            description=parser.prog,
        )
    except (OSError, InputError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.summary())
    return report.exit_status


def text_writer(convert: Callable[[os.PathLike], str]) -> Callable[[os.PathLike, Path], None]:
    """convert(source) -> text, made into what writes it to a target."""
    return partial(_write_text, convert)


def _write_text(convert: Callable[[os.PathLike], str], source: os.PathLike, target: Path) -> None:
    target.write_text(convert(source), encoding="utf-8", newline="\n")


def _beside(root: Path, ending: str) -> Path:
    root = root if root.name not in ("", "..") else root.resolve()
    return root.with_name((root.stem if root.is_file() else root.name) + ending)


def _within(root: Path, output_root: Path) -> Path | None:
    """The output folder as a walk of the input folder meets it, if it lies within."""
    inner, outer = output_root.resolve(), root.resolve()
    return root / inner.relative_to(outer) if outer in inner.parents else None
