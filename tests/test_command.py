"""The command layer: parsers from docstrings, errors, left-out files, exit statuses, conversion of folders."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from clamplib.command import (
    add_backend,
    add_device,
    add_variant,
    add_workers,
    batch_parser,
    convert_folder,
    guarded,
    help_of,
    make_parser,
    positive,
    report_batch,
    report_left_out,
    text_writer,
)
from clamplib.files import InputError
from clamplib.jobs import Report

DOC = """Turns texts into capitals.

    A block keeps    its spaces.

example: python capitals.py texts capitals
"""


def test_help_shows_the_docstring_and_ends_with_its_example():
    shown = make_parser(DOC).format_help()
    assert "Turns texts into capitals.\n\n    A block keeps    its spaces.\n\n" in shown
    assert shown.endswith("\n\nexample: python capitals.py texts capitals\n")


def test_a_docstring_of_two_paragraphs():
    texts = help_of("Turns texts into capitals.\n\nexample: clamp3 capitals")
    assert texts["description"] == "Turns texts into capitals." and texts["epilog"] == "example: clamp3 capitals"


def test_common_options():
    parser = argparse.ArgumentParser()
    for add in (add_variant, add_device, add_workers, add_backend):
        add(parser)
    assert set(vars(parser.parse_args([])).values()) == {None}
    args = parser.parse_args("--variant mini --device cpu --workers 2 --backend dask".split())
    assert vars(args) == {"variant": "mini", "device": "cpu", "workers": 2, "backend": "dask"}


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "one", ""])
def test_a_count_must_be_positive(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=positive)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([f"--count={text}"])
    assert f"argument --count: expected a whole number above 0, got {text!r}" in capsys.readouterr().err


def test_a_positive_count():
    assert positive("12") == 12


@guarded
def command(error: BaseException | None = None) -> int:
    """Fails, or does not."""
    if error:
        raise error
    print("done")
    return 0


def test_a_command_that_succeeds(capsys):
    assert command() == 0
    assert capsys.readouterr() == ("done\n", "")
    assert command.__doc__ == "Fails, or does not."


@pytest.mark.parametrize(
    "error",
    [
        InputError("a.abc: expected notes"),
        FileNotFoundError("a.abc"),
        ImportError("needs a package"),
        ValueError("expected 3"),
        FloatingPointError("the loss is not finite"),
    ],
)
def test_an_error_is_one_line_and_status_1(error, capsys):
    assert command(error) == 1
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_ctrl_c_is_status_130(capsys):
    assert command(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "stopped; finished files are kept\n")


@pytest.mark.parametrize("error", [KeyError("bug"), SystemExit(2)])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        command(error)


def test_left_out_files(capsys):
    assert report_left_out([]) == 0
    assert report_left_out([InputError("a.npy: expected finite values"), "b.npy: empty"]) == 1
    assert capsys.readouterr() == ("", "left out: a.npy: expected finite values\nleft out: b.npy: empty\n")


def test_a_batch(capsys):
    assert report_batch(Report(done=2, skipped=1)) == 0
    assert report_batch(Report(failures=[{"file": "a", "error": "b"}])) == 1
    assert capsys.readouterr().out.splitlines() == [
        "2 done, 1 skipped, 0 failed",
        "0 done, 0 skipped, 1 failed (see failures.jsonl in the output folder)",
    ]


def capitals(path: Path) -> str:
    return path.read_text().upper()


def convert(*words: object) -> int:
    parser = batch_parser(DOC, "texts", "_capitals")
    args = parser.parse_args([*map(str, words), "--workers", "1"])
    return convert_folder(parser, args, text_writer(capitals), (".txt",), ".txt")


@pytest.fixture
def texts(tmp_path) -> Path:
    (tmp_path / "texts/sub").mkdir(parents=True)
    (tmp_path / "texts/a.txt").write_text("one\n")
    (tmp_path / "texts/sub/b.txt").write_text("two\n")
    return tmp_path / "texts"


def test_a_folder_is_converted_beside_itself(texts, monkeypatch, capsys):
    monkeypatch.chdir(texts.parent)
    assert convert() == 0  # texts is the default
    assert Path("texts_capitals/sub/b.txt").read_bytes() == b"TWO\n"
    assert capsys.readouterr().out == "2 done, 0 skipped, 0 failed\n"


def test_an_output_folder_within_the_input_is_not_read(texts, capsys):
    for _ in range(2):
        assert convert(texts, texts / "out") == 0
    assert capsys.readouterr().out.splitlines()[1] == "0 done, 2 skipped, 0 failed"


@pytest.mark.parametrize("output", ["texts", "texts/a.txt"])
def test_the_input_is_never_the_output(output, texts, capsys):
    assert convert(texts, texts.parent / output) == 1
    assert "expected an output folder other than the input" in capsys.readouterr().err
    assert (texts / "a.txt").read_text() == "one\n"


def test_the_layer_loads_no_torch():
    code = "import sys, clamplib.command; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
