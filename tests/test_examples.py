import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from estfx.schedules.schedule import Schedule
from estfx.training.train_config import RunConfig

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTED = {
    "own_loop.py": "stage 3",
    "cut.py": "an ordinary checkpoint; of its configuration: num_hidden_layers = 3",
    "search.py": "loaded again",
    "ensemble.py": "they go on",
    "stitched.py": "4 + 0",
    "trainer.py": "whole model's",
    "accelerate_loop.py": "step 14  stage 3",
    "lora.py": "merged into a LlamaForCausalLM",
}
PRINTED_ON_RANKS = {"ddp.py": "step 14  stage 3", "fsdp.py": "saved and loaded"}
PRINTED_ALONE = {"lightning_module.py": "step 14  stage 3"}  # it sets signal handlers and warns of the machine

# a thread of gloo still holds something of Python's when Python has ended (pytorch#179291); FSDP2 keeps gloo's threads
ABORTED_AT_EXIT = "terminate called without an active exception"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # which PEFT asks for
@pytest.mark.sweep("script", days=2)
@pytest.mark.parametrize(("script", "printed"), PRINTED.items())
def test_a_script_runs(script, printed, capsys):
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert printed in capsys.readouterr().out


@pytest.mark.sweep("script", days=3)
@pytest.mark.parametrize(("script", "printed"), (PRINTED_ON_RANKS | PRINTED_ALONE).items())
def test_a_script_runs_in_processes_of_its_own(script, printed):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *(torchrun if script in PRINTED_ON_RANKS else []), str(EXAMPLES / script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if ABORTED_AT_EXIT in done.stderr:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_every_script_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTED, *PRINTED_ON_RANKS, *PRINTED_ALONE}


def test_the_schedule_is_the_papers():
    assert Schedule.from_yaml(EXAMPLES / "schedule.yaml") == Schedule.est(150_000)


def test_the_run_is_valid():
    config = RunConfig.load(EXAMPLES / "train.yaml").resolved()
    assert config.model.config["num_hidden_layers"] == 4
    steps = config.train.total_steps
    assert config.schedule.build(steps) == Schedule.compound(steps)
