import runpy
from pathlib import Path

import pytest

from estfx.schedule import Schedule
from estfx.train_config import RunConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(("script", "printed"), [("own_loop.py", "stage 3"), ("trainer.py", "whole model's")])
def test_a_script_runs(script, printed, capsys):
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert printed in capsys.readouterr().out


def test_every_script_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"own_loop.py", "trainer.py"}


def test_the_schedule_is_the_papers():
    assert Schedule.from_yaml(EXAMPLES / "schedule.yaml") == Schedule.est(150_000)


def test_the_run_is_valid():
    config = RunConfig.load(EXAMPLES / "train.yaml").resolved()
    assert config.model.config["num_hidden_layers"] == 4
    steps = config.train.total_steps
    assert config.schedule.build(steps) == Schedule.est(steps)
