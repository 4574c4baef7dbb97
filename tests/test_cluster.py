"""Converting and embedding on a Ray cluster of two nodes, both on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clamplib.retrieval import load_features

pytest.importorskip("ray")

ROOT = Path(__file__).parents[1]
ON_TWO_NODES = """
import os, runpy, sys, time
import ray
from ray.cluster_utils import Cluster

from clamplib import cli, files, library

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
while ray.cluster_resources().get("CPU") != 2:
    time.sleep(0.1)


def node(number):
    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()


found = {result for _, result, error in files.run_jobs(node, range(8), backend="ray") if not error}
library.FILES_A_JOB = 2
scores, script = sys.argv[1:]
status = cli.main(["embed", scores, "embedded", "--variant", "mini", "--backend", "ray", "--no_cache"])
status += runpy.run_path(script)["main"]([scores, "converted", "--backend", "ray"])
print("nodes", len(found), "status", status)
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
    done = subprocess.run(words, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=300)
    assert "status 2" in done.stdout, done.stdout + done.stderr  # both of them name bad.xml; Ray may keep to one node
    assert len(list((tmp_path / "converted").glob("*.abc"))) == 6
    words = [sys.executable, "-m", "clamplib.cli", "embed", scores, "alone", "--variant", "mini", "--no_cache"]
    subprocess.run(words, cwd=tmp_path, capture_output=True)
    together, alone = load_features(tmp_path / "embedded"), load_features(tmp_path / "alone")
    assert together.keys == alone.keys and len(alone) == 6
    np.testing.assert_allclose(together.matrix, alone.matrix, atol=1e-5)
    assert "bad.xml" in (tmp_path / "embedded/failures.jsonl").read_text()
