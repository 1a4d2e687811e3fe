import io
import math
import re
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

from estfx.costs.active_counts import Activity
from estfx.costs.schedule_plan import Plan, StagePlan
from estfx.training.live_view import LiveView
from estfx.training.progress_display import ProgressDisplay
from estfx.training.step_records import StepRecord


def activity(stage):
    return Activity(stage=stage, layers=3, num_layers=6, heads=12, num_heads=48, neurons=96, num_neurons=384)


def stage(start, stop, keep=1.0, layers=1.0):
    flops = 1e9 * keep * layers + 2e8
    costs = {"flops_layers": 1e9 * keep * layers, "flops_model": flops, "parameters": 1.0, "activation_bytes": 1.0}
    return StagePlan(start=start, stop=stop, heads=keep, neurons=keep, layers=layers, **costs)


def plan(*stages):
    return Plan(batch_size=2, seq_len=8, stages=list(stages), whole=stage(0, stages[-1].stop))


PLAN = plan(stage(0, 12, 0.5, 0.5), stage(12, 50, 0.5), stage(50, 100))


def stage_of(step):
    return next(number for number, each in enumerate(PLAN.stages, start=1) if step < each.stop)


def seconds_of(step):
    """A stage's first steps compile."""
    number = stage_of(step)
    return 30.0 if step - PLAN.stages[number - 1].start < 3 else 0.1 * number


def drive(display, steps):
    for step in steps:
        display.begin(step)
        display.step(step, activity(stage_of(step)), 6.0 - step / 50, seconds_of(step), 1e-3)


def shown(terminal, width=80, steps=100, **options):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, height=30, **options)
    with ProgressDisplay(console, total_steps=100) as display:
        display.say("a line [with brackets]")
        display.expect(PLAN, tokens_per_step=1000, compiles=True)
        display.held_out(0, 6.5)
        drive(display, range(steps))
        display.held_out(steps, 4.25)
    return file.getvalue()


def view(steps, **options):
    made = LiveView(PLAN, 1000, True)
    for step in range(steps):
        made.begin(step)
        made.end(step, stage_of(step) - 1, 6.0 - step / 50, seconds_of(step))
    for name, value in options.items():
        setattr(made, name, value)
    return made


def picture(made, width, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, force_terminal=True, width=width, color_system=None).print(made)
    file.seek(0)
    return re.sub("\x1b\\[[0-9;]*m", "", file.read()).splitlines()


# -- plain lines -------------------------------------------------------------------------------------------------------


def test_lines_are_plain_where_there_is_no_terminal():
    lines = shown(terminal=False, width=160).splitlines()
    assert lines[0] == "a line [with brackets]"
    assert lines[1] == "held-out loss of the untrained model: 6.5000"
    assert lines[2] == "step   0/100  stage 1  layers 3/6  heads 12/48  neurons 96/384  loss 6.000  30.000 s/step"
    assert any(line.startswith("step  12/100  stage 2") for line in lines)  # the first of a stage is always shown
    assert len(lines) == 2 + 20 + 3
    assert "4.25" not in "".join(lines)


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "step   0/100  stage 1" in shown(terminal=True)


# -- the picture -------------------------------------------------------------------------------------------------------


def test_what_the_picture_tells():
    made = view(60, learning_rate=3e-4, held_out=[(0, 6.5), (50, 5.125)])
    made.begun -= 3700
    lines = picture(made, 80)
    assert lines[0].startswith("60/100 ━")
    assert lines[0].endswith(" 1:01:40, 0:00:12 left")  # 40 steps of 0.3 s
    assert lines[0].count("┃") == 2  # where stages begin
    assert re.match(r"loss 4\.820, smoothed 4\.9\d\d █[▁-█]+▁$", lines[1])
    assert lines[2:4] == [
        # 12 · 0.45 + 38 · 0.7 + 10 · 1.2 of 60 · 1.2, in 1e9
        "FLOPs spent 4.40e+10   saved 2.80e+10 (38.9%)   3,333 tokens/s",
        "learning rate 3.00e-04   held-out loss 6.500 at 0, 5.125 at 50",
    ]
    assert lines[-4:] == [
        "  stage  steps  heads  neurons  layers   FLOPs  s/step  of last",
        "      1   0-11    50%      50%     50%   37.5%   0.100     0.33",
        "      2  12-49    50%      50%    100%   58.3%   0.200     0.67",
        "▸     3  50-99   100%     100%    100%  100.0%   0.300     1.00",
    ]


def test_before_the_last_stage_is_measured_its_share_is_that_of_flops():
    lines = picture(view(20), 80)
    assert lines[-3:] == [
        "      1   0-11    50%      50%     50%   37.5%   0.100    ~0.38",
        "▸     2  12-49    50%      50%    100%   58.3%   0.200    ~0.58",
        "      3  50-99   100%     100%    100%  100.0%       -    ~1.00",
    ]


def test_the_time_that_is_left_goes_by_what_was_measured_and_by_flops_where_nothing_was():
    assert view(0).remaining() is None
    assert view(3).remaining() is None  # compiling says nothing
    assert picture(view(3), 80)[0].endswith("? left")
    assert view(12).remaining() == pytest.approx(0.1 / 0.45 * (38 * 0.7 + 50 * 1.2))
    assert view(60).remaining() == pytest.approx(40 * 0.3)
    assert view(100).remaining() == 0


def test_the_first_step_of_a_stage_is_said_to_compile_while_it_runs():
    made = view(12)
    assert "first step" not in "".join(picture(made, 80))
    made.begin(12)
    made.running_since -= 42
    assert "compiling the first step of stage 2: 42 s" in picture(made, 80)
    assert picture(made, 80)[-2].startswith("▸     2")
    made.compiles = False
    assert "running the first step of stage 2: 42 s" in picture(made, 80)
    made.end(12, 1, 5.0, 30.0)
    made.begin(13)
    assert "first step" not in "".join(picture(made, 80))


def test_a_loss_that_is_lost_does_no_harm():
    made = view(20)
    made.end(20, 1, math.nan, 0.1)
    assert picture(made, 80)[1].startswith("loss nan, smoothed 5.")


@pytest.mark.parametrize("width", [1, 5, 10, 20, 40, 63, 64, 80, 200])
@pytest.mark.parametrize("steps", [0, 1, 30, 100])
def test_it_fits_any_width_and_at_most_eighty_columns(width, steps):
    made = view(steps, learning_rate=3e-4, held_out=[(0, 6.5), (50, 5.125), (99, 4.0), (100, 4.0)])
    made.begin(0)
    lines = picture(made, width)
    assert max(map(cell_len, lines)) <= min(width, 80)
    assert len(lines) <= 14
    if width >= 64:
        assert "neurons" in lines[-4]
    elif width >= 24:
        assert lines[-4] == "  stage  s/step  of last"


def test_a_terminal_without_unicode_gets_none():
    lines = picture(view(60), 80, encoding="ascii")
    assert all(line.isascii() for line in lines)
    assert lines[0].startswith("60/100 ######|")
    assert lines[-1].startswith(">     3")


def test_of_many_stages_those_around_the_one_in_force_are_shown():
    many = plan(*(stage(10 * i, 10 * i + 10, (i + 1) / 20) for i in range(20)))
    made = LiveView(many, 1000, True)
    for step, first, last in ((0, 1, 7), (105, 8, 14), (199, 14, 20)):
        made.begin(step)
        rows = [line for line in picture(made, 80) if re.search(r"\d+-\d+ +\d+%", line)]
        assert [int(row[2:].split()[0]) for row in rows] == list(range(first, last + 1))
        assert [row for row in rows if row.startswith("▸")] == [rows[step // 10 + 1 - first]]


# -- on a terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_gets_the_last_picture_and_what_was_said_above_it(width):
    text = shown(terminal=True, width=width)
    assert text.index("a line [with brackets]") < text.index("100/100")
    last = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", text[text.rindex("100/100") :])
    assert "loss 4.020" in last
    assert "4.250 at 100" in last
    assert re.search(r"▸ +3 .*0\.300 +1\.00", last)
    assert all(cell_len(line) <= width for line in last.splitlines())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_run_that_is_stopped_leaves_the_terminal_in_order(error):
    file = io.StringIO()
    display = ProgressDisplay(Console(file=file, force_terminal=True, width=80, height=30), total_steps=100)
    with pytest.raises(error), display:  # noqa: PT012
        display.expect(PLAN, 1000, True)
        drive(display, range(12))
        display.begin(12)
        raise error
    text = file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is there
    last = text[text.rindex("12/100") :]
    assert "compiling" not in last
    assert last.endswith("\n") or last.rstrip("\x1b[?25h").endswith("\n")
    display.say("said after it")
    assert file.getvalue().endswith("said after it\n")


def test_the_cursor_is_never_hidden_while_a_run_runs():
    """A process that is killed cannot show it again."""
    file = io.StringIO()
    with ProgressDisplay(Console(file=file, force_terminal=True, width=80, height=30), 100) as display:
        display.expect(PLAN, 1000, True)
        assert file.getvalue() == ""  # nothing before the first step
        display.begin(0)
        text = file.getvalue()
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_run_that_is_resumed_shows_the_steps_before():
    file = io.StringIO()
    with ProgressDisplay(Console(file=file, force_terminal=True, width=80, height=30), 100) as display:
        display.expect(PLAN, 1000, True)
        display.restore(StepRecord(step, stage_of(step), 6.0 - step / 50, seconds_of(step)) for step in range(60))
        display.begin(60)
        made = display._view
        assert made.measured() == pytest.approx([0.1, 0.2, 0.3])
        assert made.running_since is not None  # it compiles anew
        display.step(60, activity(3), 4.8, 30.0, 1e-3)
        assert made.measured() == pytest.approx([0.1, 0.2, 0.3])
    assert "61/100" in file.getvalue()


def test_pictures_are_drawn_seldom(monkeypatch):
    """Steps only write numbers down; drawing is another thread's, at most four times a second."""
    drawn = []
    monkeypatch.setattr(LiveView, "lines", lambda *args, **options: drawn.append(1) or iter(()))
    made = SimpleNamespace(file=io.StringIO())
    with ProgressDisplay(Console(file=made.file, force_terminal=True, width=80, height=30), 100) as display:
        display.expect(PLAN, 1000, True)
        drive(display, range(100))
        assert display._live.refresh_per_second <= 4
        assert len(drawn) < 10


def test_no_color_is_respected(monkeypatch):
    assert "\x1b[32" in shown(terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search("\x1b\\[(?:\\d+;)*[349]\\d", shown(terminal=True, color_system="standard"))
