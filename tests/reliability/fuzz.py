"""Mutates real files and reads them with every reader, through the same processes with limits as a user's files.

Each input must give a whole value or one reason. Anything else is a finding: another exception, a process that died,
something printed, a file left behind, or a value that is not whole. A limit of time or memory is a reason too, but
these inputs are shown as well. Equal seeds make equal inputs.

(Hypothesis would call a reader in its own process, one input after the other. Here inputs run in other processes, many
at a time, so that a crash or a hang is one more outcome. A finding is made smaller afterwards.)

    python tests/reliability/fuzz.py --count 20000 --seed 1
    python tests/reliability/fuzz.py --replay out/fuzz/midi/17.mid
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported: a mutated config may name any model

import fuzz_outcomes
from fuzz_outcomes import REFUSED, WHOLE, Result
from fuzz_readers import READERS
from fuzz_seeds import write_seeds
from tqdm import tqdm

from clamplib.jobs import Limits, run_jobs

OUT = Path("out/fuzz")
LIMITS = Limits(seconds=20, memory=2)
TIME, MEMORY, DIED, CHANGED, LOST = "time limit", "memory limit", "died", "not the same each time", "lost"
ENDED = {"seconds": TIME, "GiB of memory": MEMORY, "died": DIED}  # words of processes for what ended a job
LIMITED = (TIME, MEMORY)  # reasons too, but each is worth a look
FINE = (WHOLE, REFUSED, *LIMITED)
SHOWN = 5  # inputs that are named per finding
REASONS = 40  # kinds of reasons in the report, per reader


@dataclass
class Row:
    """What became of the inputs of one reader."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # of all inputs
    slowest: tuple[float, int] = (0.0, -1)  # seconds, and the number of the input
    largest: tuple[float, int] = (0.0, -1)  # MiB
    reasons: Counter[str] = field(default_factory=Counter)
    unchanged: dict[str, str] = field(default_factory=dict)  # outcome of a seed as it is, by its content


@dataclass
class Finding:
    """Inputs with the same outcome at the same place."""

    reader: str
    outcome: str
    place: str
    detail: str
    numbers: list[int]
    data: bytes = b""


def plan(count: int, seed: int, names: Sequence[str]) -> list[tuple[str, int]]:
    """Draws the reader of each input by their shares, and numbers the inputs of each from 0.

    Those that import much come first: a batch of many inputs that takes seconds would be ended and tried one by one.
    """
    shares = [READERS[name].share for name in names]
    drawn = [name for name in names if READERS[name].imports]
    drawn += [name for name in names if not READERS[name].imports]
    drawn = drawn[:count] + Random(seed).choices(names, shares, k=max(count - len(drawn), 0))
    counts: Counter[str] = Counter()
    jobs = []
    for name in drawn:
        jobs.append((name, counts[name]))
        counts[name] += 1
    return jobs


def run(
    seeds: Path, jobs: Sequence[tuple[str, int]], seed: int, workers: int | None, limits: Limits = LIMITS
) -> tuple[dict[str, Row], list[Finding]]:
    """Reads the inputs of the jobs, each a reader and a number."""
    rows: dict[str, Row] = defaultdict(Row)
    findings: dict[tuple, Finding] = {}
    examine = partial(fuzz_outcomes.examine_number, seeds, seed)
    outcomes = run_jobs(examine, jobs, workers=workers, limits=limits)
    waiting = set(range(len(jobs)))
    for place, value, error in tqdm(outcomes, total=len(jobs), unit="input", desc="fuzz", smoothing=0):
        waiting.discard(place)
        name, number = jobs[place]
        row, result = rows[name], value or ended(error)
        if fuzz_outcomes.is_unchanged(number):
            data = fuzz_outcomes.make_input(seeds, seed, name, number)
            known = row.unchanged.setdefault(data, result.outcome + result.digest)
            if known != result.outcome + result.digest:
                result = Result(CHANGED, f"{known}, then {result.outcome + result.digest}", name)
        row.counts[result.outcome] += 1
        row.seconds += result.seconds
        row.slowest = max(row.slowest, (round(result.seconds, 2), number))
        row.largest = max(row.largest, (round(result.memory, 1), number))
        if result.outcome == REFUSED:
            row.reasons[without_details(result.detail)] += 1
        elif result.outcome != WHOLE:
            key = (result.outcome, result.place or name)
            finding = findings.setdefault(key, Finding(name, result.outcome, result.place, result.detail, []))
            if finding.reader == name:
                finding.numbers.append(number)
    for place in waiting:
        name, number = jobs[place]
        findings.setdefault((LOST, name), Finding(name, LOST, "", "no outcome", [])).numbers.append(number)
    for finding in findings.values():
        finding.data = fuzz_outcomes.make_input(seeds, seed, finding.reader, finding.numbers[0])
    return rows, list(findings.values())


def ended(error: str) -> Result:
    """What became of an input whose process was ended."""
    outcome = next((outcome for words, outcome in ENDED.items() if words in error), fuzz_outcomes.LEAKED)
    return Result(outcome, error, "")


def examine_all(seeds: Path, jobs: Sequence[tuple[str, bytes]], workers: int | None, limits: Limits) -> list[Result]:
    """Reads inputs, each a reader and its content."""
    results: list[Result] = [Result(LOST)] * len(jobs)
    for number, value, error in run_jobs(partial(fuzz_outcomes.examine, seeds), jobs, workers=workers, limits=limits):
        results[number] = value or ended(error)
    return results


def shrink(seeds: Path, finding: Finding, seconds: float, workers: int | None, limits: Limits) -> bytes:
    """Removes what it can from an input so that the finding stays the same, for some seconds."""
    data, deadline = finding.data, time.monotonic() + seconds
    size = max(len(data) // 2, 1)
    while time.monotonic() < deadline:
        starts = list(range(0, len(data), size))[:64]
        shorter = [data[:start] + data[start + size :] for start in starts]
        results = examine_all(seeds, [(finding.reader, each) for each in shorter], workers, limits)
        same = [each for each, result in zip(shorter, results, strict=True) if is_same(finding, result)]
        if same:
            data = same[-1]
        elif size == 1:
            break
        else:
            size //= 2
        size = min(size, max(len(data) // 2, 1))
    return data


def is_same(finding: Finding, result: Result) -> bool:
    return (result.outcome, result.place) == (finding.outcome, finding.place)


def without_details(reason: str) -> str:
    """A reason without the folder, the numbers and the quoted words in it."""
    reason = re.sub(r"^\S*/", "", reason)
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", reason)
    return re.sub(r"-?\d+(\.\d+)?", "N", reason)[:160]


# ------------------------------------------------------------------------------------ reports


def table(rows: dict[str, Row]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield "| reader | inputs | whole | refused | ended at a limit | findings | slowest (s) | most memory (MiB) |"
    yield "| --- | --: | --: | --: | --: | --: | --: | --: |"
    total: Counter[str] = Counter()
    for name in filter(rows.__contains__, READERS):
        row = rows[name]
        total += row.counts
        yield f"| {name} | {_counts(row.counts)} | {row.slowest[0]:.2f} | {row.largest[0]:.0f} |"
    slowest = max(row.slowest[0] for row in rows.values())
    largest = max(row.largest[0] for row in rows.values())
    yield f"| all | {_counts(total)} | {slowest:.2f} | {largest:.0f} |"


def _counts(counts: Counter[str]) -> str:
    limited = sum(counts[outcome] for outcome in LIMITED)
    inputs = sum(counts.values())
    found = inputs - sum(counts[outcome] for outcome in FINE)
    return f"{inputs} | {counts[WHOLE]} | {counts[REFUSED]} | {limited} | {found}"


def save(findings: Sequence[Finding], folder: Path) -> list[Path]:
    """Writes the inputs of findings, each into a folder that is named after its reader."""
    paths = []
    for finding in findings:
        path = folder / finding.reader / f"{finding.numbers[0]}{Path(READERS[finding.reader].name).suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(finding.data)
        paths.append(path)
    return paths


def as_json(rows: dict[str, Row], findings: Sequence[Finding], paths: Sequence[Path]) -> dict:
    readers = {}
    for name, row in rows.items():
        slowest = dict(zip(("seconds", "number"), row.slowest, strict=True))
        largest = dict(zip(("MiB", "number"), row.largest, strict=True))
        reasons = dict(row.reasons.most_common(REASONS))
        readers[name] = {
            **row.counts,
            "seconds": round(row.seconds, 1),
            "slowest": slowest,
            "most memory": largest,
            "reasons": reasons,
        }
    found = []
    for finding, path in zip(findings, paths, strict=True):
        facts = {name: getattr(finding, name) for name in ("reader", "outcome", "place", "detail", "numbers")}
        found.append({**facts, "input": str(path)})
    return {"readers": readers, "findings": found}


def replay(seeds: Path, paths: Sequence[Path], reader: str | None, limits: Limits) -> int:
    """Reads kept inputs again, prints what becomes of each, and returns the exit status."""
    jobs = [(reader or path.parent.name, path.read_bytes()) for path in paths]
    status = 0
    for path, result in zip(paths, examine_all(seeds, jobs, 1, limits), strict=True):
        print(f"{path}: {result.outcome}, {result.seconds:.2f} s, {result.memory:.0f} MiB {result.place}")
        print(result.detail)
        status |= result.outcome not in FINE
    return status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="inputs (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (default: %(default)d)")
    parser.add_argument(
        "--readers", nargs="+", choices=READERS, default=list(READERS), metavar="NAME", help="only these"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument(
        "--timeout", type=float, default=LIMITS.seconds, help="seconds per input (default: %(default)g)"
    )
    parser.add_argument("--memory", type=float, default=LIMITS.memory, help="GiB per input (default: %(default)g)")
    parser.add_argument(
        "--shrink", type=float, default=20, help="seconds to make a finding smaller (default: %(default)g)"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder for the inputs of findings (default: %(default)s)"
    )
    parser.add_argument("--report", type=Path, help="a file in JSON to write, with the reasons of refusals")
    parser.add_argument(
        "--replay", type=Path, nargs="+", help="read these inputs; their folder is named after the reader"
    )
    parser.add_argument("--reader", choices=READERS, metavar="NAME", help="of the inputs to replay")
    args = parser.parse_args(argv)
    limits = Limits(args.timeout, args.memory)
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder, "seeds")
        write_seeds(seeds)
        if args.replay:
            return replay(seeds, args.replay, args.reader, limits)
        rows, findings = run(seeds, plan(args.count, args.seed, args.readers), args.seed, args.workers, limits)
        if args.shrink:
            defects = [finding for finding in findings if finding.outcome not in LIMITED]
            for finding in tqdm(defects, unit="finding", desc="shrink", disable=not defects):
                finding.data = shrink(seeds, finding, args.shrink, args.workers, limits)
        paths = save(findings, args.out)
    print("\n".join(table(rows)))
    for finding, path in zip(findings, paths, strict=True):
        numbers = ", ".join(map(str, finding.numbers[:SHOWN]))
        print(f"\n{finding.outcome}: {finding.place or finding.reader} ({len(finding.numbers)} inputs: {numbers})")
        print(f"  {path}\n  {finding.detail.strip()[-400:]}")
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(json.dumps(as_json(rows, findings, paths), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 1 if any(finding.outcome not in LIMITED for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
