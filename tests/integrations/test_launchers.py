"""Two processes that torchrun or `accelerate launch` starts compute what one does on their joined batches."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from differences import largest_difference
from launched_training import BREAK, WAYS, alone, with_trainer

TESTS = Path(__file__).parent.parent
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCH = ["accelerate.commands.launch", "--main_process_port", "0"]
COUNTS = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
FSDP2 = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_processes: 2
num_machines: 1
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
"""
KINDS = {"torch-fsdp2": "FSDPLlamaForCausalLM", "accelerate-fsdp2": "FSDPLlamaForCausalLM"}
# a thread of gloo still holds something of Python's when Python has ended (pytorch#179291); FSDP2 keeps gloo's threads
ABORTED_AT_EXIT = "terminate called without an active exception"


def run(launcher: list[str], script: Path, *args: str, **environment: str) -> str:
    command = [sys.executable, "-m", *launcher, str(script), *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if ABORTED_AT_EXIT in done.stderr:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def launcher_of(way: str, folder: Path) -> list[str]:
    if way == "accelerate-fsdp2":
        (folder / "fsdp2.yaml").write_text(FSDP2)
        return [*LAUNCH, "--config_file", str(folder / "fsdp2.yaml")]
    return [*LAUNCH, "--multi_gpu", *COUNTS] if way == "accelerate-ddp" else TORCHRUN


@functools.cache
def by_one_process(way: str) -> dict[str, Any]:
    return with_trainer() if way == "trainer" else alone()


@pytest.mark.sweep("way", days=7)
@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_one_process(way: str, tmp_path: Path) -> None:
    want = by_one_process(way)
    run(
        launcher_of(way, tmp_path),
        TESTS / "launched_training.py",
        way,
        str(tmp_path / "found.json"),
        TMPDIR=str(tmp_path),
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kind"] == KINDS.get(way, "DistributedDataParallel")
    assert found["stages"] == want["stages"]
    assert largest_difference(found["losses"], want["losses"]) < 2e-6
    assert found["loaded"] == pytest.approx(found["weights"], rel=1e-12)  # the order of a sum
    assert found["resumed"]["losses"] == found["losses"][BREAK:]  # to the bit
    assert found["resumed"]["weights"] == found["weights"]


@pytest.mark.sweep(day=3, days=7)
def test_the_example_with_accelerate_is_launched() -> None:
    example = TESTS.parent / "examples" / "accelerate_loop.py"
    printed = run([*LAUNCH, "--multi_gpu", *COUNTS], example, ACCELERATE_USE_CPU="true")
    assert printed.count("step 14  stage 3") == 1  # of the first process alone
