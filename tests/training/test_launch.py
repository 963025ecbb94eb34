"""The command line trains in one process and in two, and stops on a signal so that it can go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from xmodal.training.config import to_dict
from xmodal.training.trainer import train

HANGS = 900
"""Seconds after which a command is not slow, as on a busy machine, but hangs."""


@pytest.fixture
def recipe(tmp_path):
    """Writes a configuration as a recipe file; JSON is YAML."""

    def write(config):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(to_dict(config)))
        return str(path)

    return write


def test_the_same_command_trains_with_two_processes(config, change, read_log, recipe, tmp_path):
    """`accelerate launch` of the command line against `train` in this process, validation included.

    With `--cpu` it would start one process; `--multi_gpu` with ACCELERATE_USE_CPU starts two that talk through gloo.
    """
    config = change(config, epochs=1, accumulate=2, optimizer__learning_rate=0.003)
    best = train(config)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    options = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    options = [*options, "-m", "xmodal", "train", "--recipe", recipe(change(config, output=tmp_path / "two"))]
    done = subprocess.run([*launch, *options], capture_output=True, text=True, check=False, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    assert "best rsum" in done.stdout
    assert torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=False)["random_states"][1]

    one, two = read_log(config.output), read_log(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for name in ("loss/total", "loss/alignment/mean_cosine", "loss/alignment/gap", "gradient_norm", "learning_rate"):
        wanted = [line[name] for line in one if name in line]
        assert [line[name] for line in two if name in line] == pytest.approx(wanted, rel=1e-4)
    assert two[-1]["validation"]["rsum"] == pytest.approx(best["rsum"], abs=20)


def test_a_terminated_command_can_go_on(config, change, recipe, read_log):
    config = change(config, epochs=1_000_000)
    command = [sys.executable, "-m", "xmodal", "train", "--recipe", recipe(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = config.output / "log.jsonl"
        while process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert output == "stopping after this step; the run can be resumed with --resume\n"
    assert "Traceback" not in errors
    steps = [line["step"] for line in read_log(config.output) if "loss/total" in line]
    train(change(config, resume=True, epochs=steps[-1] // 5 + 1))
    resumed = [line["step"] for line in read_log(config.output) if "loss/total" in line]
    assert resumed[: len(steps)] == steps
    assert resumed == list(range(1, len(resumed) + 1))
