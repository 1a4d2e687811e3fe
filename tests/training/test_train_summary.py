import io
from types import SimpleNamespace

from rich.console import Console

from estfx.training.step_records import StepRecord
from estfx.training.train_summary import print_summary, stage_seconds


def stage(start, stop, keep, layers):
    return SimpleNamespace(
        start=start,
        stop=stop,
        heads=keep,
        neurons=keep,
        layers=layers,
        flops_layers=int(1000 * keep * layers),
        flops_model=int(1000 * keep * layers) + 200,
    )


PLAN = SimpleNamespace(
    stages=[stage(0, 10, 0.5, 0.5), stage(10, 20, 0.5, 1), stage(20, 22, 1, 1)], whole=stage(0, 22, 1, 1)
)


def steps(stop, whole_seconds=0.4):
    seconds = {1: 0.1, 2: 0.2, 3: whole_seconds}
    for number, each in enumerate(PLAN.stages, start=1):
        for step in range(each.start, min(each.stop, stop)):
            slow = 30.0 if step - each.start < 3 else 0.0  # compiles
            yield StepRecord(step=step, stage=number, loss=1.0, seconds=seconds[number] + slow)


def test_compiling_steps_are_left_out_and_short_stages_say_nothing():
    first, second, third = stage_seconds(PLAN, list(steps(22)))
    assert (first["seconds_per_step"], first["steps_measured"]) == (0.1, 7)
    assert (second["seconds_per_step"], second["steps_measured"]) == (0.2, 7)
    assert (third["seconds_per_step"], third["steps_measured"]) == (None, 0)
    assert first["of_whole"] is second["of_whole"] is third["of_whole"] is None
    assert first["flops_of_whole_layers"] == 0.25
    assert first["flops_of_whole_model"] == 450 / 1200


def test_stages_are_measured_against_the_whole_stage_of_the_same_run():
    longer = SimpleNamespace(stages=[*PLAN.stages[:2], stage(20, 30, 1, 1)], whole=PLAN.whole)
    records = [*steps(20), *(StepRecord(step, 3, 1.0, 0.4) for step in range(20, 30))]
    assert [each["of_whole"] for each in stage_seconds(longer, records)] == [0.25, 0.5, 1.0]


def test_a_summary_fits_80_columns_and_names_both_savings():
    file = io.StringIO()
    summary = {
        "folder": "runs/gpt2",
        "compiled": False,
        "held_out_loss": {"before": 5.5, "after": 1.5, "tokens": 1000},
        "flops_saved": {"layers": 0.26667, "model": 0.195},
        "stages": stage_seconds(PLAN, list(steps(22))),
        "wall_seconds": {"prepare": 10.0, "train": 200.0, "total": 215.0},
    }
    print_summary(Console(file=file, width=80), summary)
    text = file.getvalue()
    assert "26.67% of the layers', 19.50% of the whole model's" in text
    assert "5.5000 before, 1.5000 after" in text
    assert "compil" not in text  # since it was not
    assert "first 3 steps of each stage" in text
    assert "…" not in text  # nothing cut off
    print_summary(Console(file=file, width=80), summary | {"compiled": True})
    assert "Medians of one run, compiled; the first 3 steps of each stage compile and are left out" in file.getvalue()


def test_seconds_that_beat_the_flops_are_told_to_be_taken_with_care():
    longer = SimpleNamespace(stages=[*PLAN.stages[:2], stage(20, 30, 1, 1)], whole=PLAN.whole)
    summary = {
        "folder": "runs/gpt2",
        "compiled": True,
        "held_out_loss": {"before": 5.5, "after": 1.5, "tokens": 1000},
        "flops_saved": {"layers": 0.26667, "model": 0.195},
        "wall_seconds": {"prepare": 10.0, "train": 200.0, "total": 215.0},
    }
    for whole, told in ((0.4, True), (0.2, False)):  # a step of stage 1 takes 0.1, and has 0.375 of the FLOPs
        records = [*steps(20), *(StepRecord(step, 3, 1.0, whole) for step in range(20, 30))]
        file = io.StringIO()
        print_summary(Console(file=file, width=200), summary | {"stages": stage_seconds(longer, records)})
        words = "Take the seconds with care: stage 1 took 0.25 of the whole's seconds for 0.38 of its FLOPs"
        assert (words in file.getvalue()) == told
        assert ("with care" in file.getvalue()) == told
