"""Converting and embedding on a Ray cluster of two nodes, both on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clamplib.retrieval.similarity import load_features

pytest.importorskip("ray", reason="ray is not installed: extra cluster")

ROOT = Path(__file__).parents[2]
ON_TWO_NODES = """
import os, runpy, sys, time
import ray
from ray.cluster_utils import Cluster

from clamplib import jobs
from clamplib.app import cli
from clamplib.embedding import collections as library

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
while ray.cluster_resources().get("CPU") != 2:
    time.sleep(0.1)


def nodes_at_work(_):
    os.makedirs(os.path.join("nodes", ray.get_runtime_context().get_node_id()), exist_ok=True)
    deadline = time.monotonic() + 120
    while len(os.listdir("nodes")) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(os.listdir("nodes"))


def die_at_two(number):
    if number == 2:
        os._exit(1)
    return 2 * number


def slow_at_two(number):
    while number == 2 and not os.path.exists("first"):
        time.sleep(0.1)
    return number


os.makedirs("nodes")
nodes = {result or error for _, result, error in jobs.run_jobs(nodes_at_work, range(8), backend="ray", limits=None)}
died = {number: result or error for number, result, error in jobs.run_jobs(die_at_two, range(1, 5), backend="ray")}
without = jobs.run_jobs(die_at_two, range(1, 5), backend="ray", limits=None)
assert died == {number: result or error for number, result, error in without}
order = []
for number, *_ in jobs.run_jobs(slow_at_two, range(8), workers=2, backend="ray"):  # they come as they are done
    order.append(number)
    if len(order) == 7:
        open("first", "w").close()
assert order[-1] == 2 and sorted(order) == list(range(8)), order
assert list(jobs.run_jobs(nodes_at_work, [], backend="ray")) == []
library.FILES_A_JOB = 2
scores, script = sys.argv[1:]
status = cli.main(["embed", scores, "embedded", "--variant", "mini", "--backend", "ray", "--no_cache"])
status += runpy.run_path(script)["main"]([scores, "converted", "--backend", "ray"])
print("nodes", *nodes, "status", status)
print("died", [died[number] for number in range(4)])
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_two_nodes_convert_and_embed(golden, tmp_path):
    scores = tmp_path / "scores"
    scores.mkdir()
    sources = ["bach__bwv154.3.mxl", "handmade__chords.musicxml"]
    for number in range(6):
        source = golden / "abc/xml" / sources[number % 2]
        (scores / f"{number}{source.suffix}").write_bytes(source.read_bytes())
    (scores / "bad.xml").write_text("<none/>")
    script = ROOT / "preprocessing/abc/batch_xml2abc.py"
    env = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", ON_TWO_NODES, scores, script]
    done = subprocess.run(words, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=600)
    assert "nodes 2 status 2" in done.stdout, done.stdout + done.stderr  # both of them name bad.xml
    died = "the process that worked on it died: out of memory, or a crash in a library"
    assert f"died {[2, died, 6, 8]}" in done.stdout
    assert len(list((tmp_path / "converted").glob("*.abc"))) == 6
    words = [sys.executable, "-m", "clamplib.app.cli", "embed", scores, "alone", "--variant", "mini", "--no_cache"]
    subprocess.run(words, cwd=tmp_path, capture_output=True)
    together, alone = load_features(tmp_path / "embedded"), load_features(tmp_path / "alone")
    assert together.keys == alone.keys and len(alone) == 6
    np.testing.assert_allclose(together.matrix, alone.matrix, atol=1e-5)
    assert "bad.xml" in (tmp_path / "embedded/failures.jsonl").read_text()
