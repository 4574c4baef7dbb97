"""What dependencies report to their makers is switched off, whichever is imported first."""

import json
import os
import subprocess
import sys

import pytest

from clamplib import TELEMETRY

STATE = """
import json, os
from huggingface_hub import constants
print(json.dumps([constants.HF_HUB_DISABLE_TELEMETRY, {name: os.environ.get(name) for name in clamplib.TELEMETRY}]))
"""


def state_after(imports: str, **variables: str) -> tuple[bool, dict]:
    """Whether huggingface_hub sends nothing, and the variables, in a process that imports these modules."""
    environment = {name: value for name, value in os.environ.items() if name not in TELEMETRY}
    for name in ("DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        environment.pop(name, None)
    command = [sys.executable, "-W", "error", "-c", imports + STATE]
    run = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("imports", ["import clamplib, huggingface_hub", "import huggingface_hub, clamplib"])
def test_telemetry_is_off(imports):
    assert state_after(imports) == [True, TELEMETRY]


@pytest.mark.parametrize("imports", ["import clamplib, huggingface_hub", "import huggingface_hub, clamplib"])
def test_the_choice_of_a_user_stays(imports):
    own = {"HF_HUB_DISABLE_TELEMETRY": "0", "RAY_USAGE_STATS_ENABLED": "1", "WANDB_ERROR_REPORTING": "true"}
    assert state_after(imports, **own) == [False, own]


def test_wandb_follows_its_variable(monkeypatch):
    """A name that a dependency no longer knows would do nothing."""
    env = pytest.importorskip("wandb.env")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", TELEMETRY["WANDB_ERROR_REPORTING"])
    assert not env.error_reporting_enabled()
