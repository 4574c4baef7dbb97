"""What every command line shares: parsers, common options, errors and the exit status; and the conversion of folders.

A script is a parser, one call into the library, and a report:

    @guarded
    def main(argv: list[str] | None = None) -> int:
        args = make_parser(__doc__).parse_args(argv)
        features = load_features(args.folder)
        ...
        return report_left_out(features.failures)

Results go to standard output, everything else to standard error. The exit status is 0, 1 if anything failed, or 2 for a
command line that cannot be parsed. Nothing here imports torch, so that --help is quick.
"""

import argparse
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec

from clamplib.files import InputError, escape, output_paths, show, walk
from clamplib.jobs import BACKENDS, LIMITS, Limits, Report, run_batch

logger = logging.getLogger(__name__)

ERRORS = (OSError, ImportError, ValueError, FloatingPointError)  # their message tells a user enough; InputError is one
FAILED, INTERRUPTED = 1, 130  # exit statuses; 130 is what shells report after Ctrl-C

P = ParamSpec("P")


# ------------------------------------------------------------------------------------ errors and the exit status


def guarded(main: Callable[P, int]) -> Callable[P, int]:
    """Decorates the main function of a command, so that errors of the user become one line and an exit status.

    Args:
        main: does the work, prints the results and returns the exit status.

    Returns:
        The same function, except that ERRORS print "error: ..." on standard error and return 1, and that Ctrl-C returns
        130. Other errors are bugs and keep their traceback.
    """

    @wraps(main)
    def run(*args: P.args, **options: P.kwargs) -> int:
        escape_output()
        try:
            return main(*args, **options)
        except ERRORS as error:
            logger.debug("The error was raised here:", exc_info=True)
            print(escape(f"error: {error}"), file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            print("stopped; finished files are kept", file=sys.stderr)
            return INTERRUPTED

    return run


def escape_output() -> None:
    """Makes the standard streams escape what they cannot encode, such as a name that is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class ShowDetails(argparse.Action):
    """The action of --verbose: the library's log and the traceback of every failure go to standard error."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        library = logging.getLogger("clamplib")
        library.handlers = [handler]
        library.setLevel(logging.DEBUG)


def report_left_out(failures: Iterable[object]) -> int:
    """Prints a line per file that was left out, given the errors that name them, and returns the exit status."""
    lines = [f"left out: {failure}" for failure in failures]
    for line in lines:
        print(escape(line), file=sys.stderr)
    return FAILED if lines else 0


def report_batch(report: Report) -> int:
    """Prints the counts of a batch as the last line of a command, and returns the exit status."""
    print(report.summary())
    return report.exit_status


# ------------------------------------------------------------------------------------ parsers and options


def help_of(doc: str) -> dict[str, Any]:
    """Returns the arguments of an ArgumentParser whose --help shows a docstring, its last paragraph at the end.

    Args:
        doc: a description, an empty line, and "example: ..." as the last paragraph.
    """
    description, _, example = doc.strip().rpartition("\n\n")
    return {
        "description": description,
        "epilog": example,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Returns the parser of a script with this docstring (see `help_of`)."""
    parser = argparse.ArgumentParser(**help_of(doc))
    add_verbose(parser)
    return parser


def add_verbose(parser: argparse._ActionsContainer) -> None:
    """Adds the option that shows the log and tracebacks."""
    parser.add_argument("--verbose", action=ShowDetails, nargs=0, help="show the log, and a traceback per failure")


def positive(text: str) -> int:
    """Parses a whole number above 0, as the `type` of an option."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    """Parses a number above 0, as the `type` of an option."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def add_variant(parser: argparse._ActionsContainer) -> None:
    """Adds the option that chooses the weights."""
    parser.add_argument(
        "--variant",
        help="weights: saas, c2, mini, a folder, or owner/name on the Hugging Face hub "
        "(default: the environment variable CLAMP3_VARIANT, else line 66 of code/config.py)",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Adds the option that chooses the device."""
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best available)")


def add_precision(parser: argparse._ActionsContainer) -> None:
    """Adds the option that chooses the precision, a name of torch's types."""
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8"),
        default="float32",
        help="in which the model computes; int8 is for CPUs, and docs/speed.md states the error of each "
        "(default: %(default)s)",
    )


def add_workers(parser: argparse._ActionsContainer) -> None:
    """Adds the option that sets the number of processes."""
    parser.add_argument(
        "--workers",
        type=positive,
        help="number of processes, here or on Ray; Dask uses all it has "
        "(default: one per core, or one for few small files)",
    )


def add_limits(parser: argparse._ActionsContainer) -> None:
    """Adds the options that limit what reading one file may take (see `limits_of`)."""
    parser.add_argument(
        "--timeout",
        type=above_zero,
        default=LIMITS.seconds,
        metavar="SECONDS",
        help="time that reading one file may take; a large file gets a second more per megabyte (default: %(default)g)",
    )
    parser.add_argument(
        "--memory",
        type=above_zero,
        default=LIMITS.memory,
        metavar="GIB",
        help="memory that reading one file may take (default: %(default)g; only Linux limits it)",
    )


def limits_of(args: argparse.Namespace) -> Limits:
    """Returns the limits that a command line asks for."""
    return Limits(args.timeout, args.memory)


def add_backend(parser: argparse._ActionsContainer) -> None:
    """Adds the option that moves the work to a cluster."""
    parser.add_argument("--backend", choices=tuple(BACKENDS), help="run on a cluster (default: on this machine)")


# ------------------------------------------------------------------------------------ conversion of folders


def batch_parser(doc: str, input_dir: str, ending: str) -> argparse.ArgumentParser:
    """Returns the parser of a script that converts a folder (see `convert_folder`).

    Args:
        doc: the docstring of the script (see `help_of`).
        input_dir: the default input folder.
        ending: what the name of the default output folder adds to that of the input.
    """
    parser = make_parser(doc)
    parser.add_argument("input_dir", nargs="?", default=input_dir, help="a folder with its sub-folders, or a file")
    parser.add_argument("output_dir", nargs="?", help=f"folder to write (default: INPUT_DIR{ending})")
    add_workers(parser)
    add_limits(parser)
    add_backend(parser)
    parser.set_defaults(ending=ending)
    return parser


@guarded
def convert_folder(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    convert: Callable[[os.PathLike, Path], str | None],
    suffixes: Sequence[str],
    suffix: str,
    split: Callable[[Path], Sequence[os.PathLike]] | None = None,
) -> int:
    """Converts the files of a folder on all cores, prints the counts and returns the exit status.

    Args:
        parser: names the command on the progress bar.
        args: what a `batch_parser` parsed.
        convert: convert(source, target) writes the target, and may return a remark, which is counted.
        suffixes: of the files to convert.
        suffix: of the files to write.
        split: split(file) returns the sources within a file, each with its own path in `alias`.
    """
    root = Path(args.input_dir)
    output_root = Path(args.output_dir) if args.output_dir else beside(root, args.ending)
    if output_root.is_file() or (suffix in suffixes and output_root.resolve() == root.resolve()):
        raise InputError(f"{show(output_root)}: expected an output folder other than the input")
    sources = _find_sources(root, output_root, suffixes, split)
    aliases = [getattr(source, "alias", source) for source in sources]
    report = run_batch(
        convert,
        sources,
        output_paths(aliases, root, output_root, suffix),
        output_root=output_root,
        workers=args.workers,
        backend=args.backend,
        limits=limits_of(args),
        description=parser.prog,
    )
    return report_batch(report)


def text_writer(convert: Callable[[os.PathLike], str]) -> Callable[[os.PathLike, Path], None]:
    """Returns a function that writes convert(source), a text, to a target."""
    return partial(_write_text, convert)


def _write_text(convert: Callable[[os.PathLike], str], source: os.PathLike, target: Path) -> None:
    target.write_text(convert(source), encoding="utf-8", newline="\n")


def beside(root: Path, ending: str) -> Path:
    """Returns the default output folder: the input with `ending` after its name."""
    root = root if root.name not in ("", "..") else root.resolve()
    return root.with_name((root.stem if root.is_file() else root.name) + ending)


def _find_sources(
    root: Path, output_root: Path, suffixes: Sequence[str], split: Callable[[Path], Sequence[os.PathLike]] | None
) -> list[os.PathLike]:
    """Finds what to convert; outputs of an earlier run, in a folder within the input, are not."""
    inner, outer = output_root.resolve(), root.resolve()
    own = root / inner.relative_to(outer) if outer in inner.parents else None
    sources = []
    for path in walk(root, suffixes):
        if own not in path.parents:
            sources += split(path) if split else [path]
    return sources
