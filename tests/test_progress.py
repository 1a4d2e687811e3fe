import io

from rich.console import Console

from estfx.activity import Activity
from estfx.progress import ProgressDisplay


def activity(stage):
    return Activity(stage=stage, layers=3, num_layers=6, heads=12, num_heads=48, neurons=96, num_neurons=384)


def shown(terminal, **options):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=160, **options)
    with ProgressDisplay(console, total_steps=100) as display:
        display.say("a line [with brackets]")
        for step in range(100):
            display.step(step, activity(1 if step < 12 else 2), loss=5.4321, seconds=0.25)
    return file.getvalue()


def test_lines_are_plain_where_there_is_no_terminal():
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "a line [with brackets]"
    assert lines[1] == ("step   0/100  stage 1  layers 3/6  heads 12/48  neurons 96/384  loss 5.432  0.250 s/step")
    assert any(line.startswith("step  12/100  stage 2") for line in lines)  # the first of a stage is always shown
    assert len(lines) == 1 + 20 + 2


def test_a_terminal_gets_a_bar():
    text = shown(terminal=True)
    assert "\x1b[" in text
    assert "100/100" in text
    assert "stage 2  layers 3/6  heads 12/48  neurons 96/384  loss 5.432  0.250 s/step" in text


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in shown(terminal=True)
