import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from estfx.errors import EstfxError, ScheduleError
from estfx.schedules.schedule import Schedule
from estfx.schedules.stage import Stage
from estfx.training.train_config import RunConfig


def test_the_default_is_a_gpt2_that_grows_by_the_default_preset():
    config = RunConfig.load()
    assert config.model.name == "gpt2"
    assert config.schedule.build(config.train.total_steps) == Schedule.compound(config.train.total_steps)
    assert config.resolved().train.zero_joining


def test_a_model_that_is_loaded_keeps_its_layers_and_weights(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=300)).save_pretrained(tmp_path)
    config = RunConfig.load(None, [f"model.name={tmp_path}"]).resolved()
    assert config.schedule.build(config.train.total_steps) == Schedule.growing(config.train.total_steps)
    assert not config.train.zero_joining


def test_what_does_not_go_with_the_default_says_that_it_is_the_default():
    settings = RunConfig.load(None, ["schedule.policy=weight_magnitude"]).schedule
    told = r"got policy=weight_magnitude\. The schedule is compound, the default; name another"
    with pytest.raises(ScheduleError, match=told):
        settings.build(100)


def test_overrides_come_after_the_file_in_order(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: {total_steps: 10, seed: 3}\nmodel:\n")
    config = RunConfig.load(file, ["train.total_steps=20", "train.total_steps=30", "model.name=llama"])
    assert (config.train.total_steps, config.train.seed, config.model.name) == (30, 3, "llama")


def test_a_resolved_run_repeats_itself_from_its_own_file(tmp_path):
    config = RunConfig.load(None, ["model.config.num_hidden_layers=2", "schedule.keep=0.25"]).resolved()
    assert config.model.config["n_layer"] == 2  # over the preset's, whatever it is called
    assert config.model.config["n_embd"] == 256
    assert config.schedule.stages[0].heads == 0.25
    config.to_yaml(tmp_path / "config.yaml")
    assert RunConfig.load(tmp_path / "config.yaml").resolved() == config


def test_a_schedule_may_be_written_out():
    config = RunConfig.load(None, ["schedule.stages=[{start: 0, heads: 0.5}]", "schedule.policy=window"])
    assert config.schedule.build(5) == Schedule(stages=[Stage(start=0, heads=0.5)], total_steps=5, policy="window")


def test_a_growing_part_is_drawn_once_unless_told():
    for overrides, keep in (([], 0.25), (["schedule.keep=0.5"], 0.5)):
        config = RunConfig.load(None, ["schedule.preset=growing", *overrides])
        assert config.schedule.build(100) == Schedule.growing(100, heads=keep, neurons=keep)
        assert config.resolved().schedule.build(300) == Schedule.growing(300, heads=keep, neurons=keep)
    anew = RunConfig.load(None, ["schedule.preset=growing", "schedule.resample_every=1"]).schedule.build(100)
    assert (anew.resample_every, anew.kept_units) == (1, "as_is")


def test_compound_growth_draws_the_same_units_in_all_layers_unless_that_is_refused():
    schedule = RunConfig.load(None, ["schedule.preset=compound"]).schedule.build(100)
    assert schedule == Schedule.compound(100)
    own = RunConfig.load(None, ["schedule.preset=compound", "schedule.draws=per_layer"])
    with pytest.raises(ScheduleError, match="use draws=shared"):
        own.schedule.build(100)


def test_a_constant_schedule_keeps_half_unless_told():
    config = RunConfig.load(None, ["schedule.preset=constant"])
    assert config.schedule.build(5) == Schedule.constant(0.5, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=3", "train: unknown key 'lr'"),
        ("trian.seed=3", "unknown key 'trian'; did you mean 'train'"),
        ("train=3", "train must be"),
        ("train.total_steps.x=3", "total_steps must be a valid integer"),
        ("train.total_steps=0", "train: total_steps must be greater than or equal to 1, got 0"),
        ("train.learning_rate=-1", "learning_rate must be greater than 0, got -1"),
        ("train.learning_rate=.nan", "learning_rate must be"),
        ("train.compile=maybe", "compile must be 'auto', True or False, got 'maybe'"),
        ("schedule.keep=2", "schedule: keep must be less than or equal to 1, got 2"),
        ("schedule.stages=[{start: 1}]", "the first stage must start at step 0"),
        (
            "train.total_steps=3",
            "Use fewer stages, or more steps. The schedule is compound, the default",
        ),
        ("nonsense", "expected key=value, got 'nonsense'"),
    ],
)
def test_a_bad_override_is_refused_in_words(override, message):
    with pytest.raises(EstfxError) as caught:
        RunConfig.load(None, [override]).resolved()
    assert message in str(caught.value)


def test_a_preset_and_stages_exclude_each_other():
    with pytest.raises(EstfxError, match="give either preset"):
        RunConfig.load(None, ["schedule.preset=est", "schedule.stages=[{start: 0}]"])


def test_a_value_is_no_section(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: 3")
    with pytest.raises(EstfxError, match="'train' is 3, not a section"):
        RunConfig.load(file, ["train.seed=3"])


def test_a_bad_file_is_named(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: {sed: 3}")
    with pytest.raises(EstfxError, match=r"run\.yaml: train: unknown key 'sed'; did you mean 'seed'"):
        RunConfig.load(file)


def test_the_schedule_of_a_loaded_model_is_the_default_for_one(tmp_path):
    (tmp_path / "model.safetensors").touch()
    loaded = RunConfig.load(None, [f"model.name={tmp_path}", "train.total_steps=100"]).build_schedule()
    assert loaded.stages == Schedule.growing(100).stages
    assert RunConfig.load(None, ["train.total_steps=100"]).build_schedule().stages == Schedule.compound(100).stages
