from estfx.training.compiler_check import why_not_compiled


def test_a_compiler_that_fails_is_told_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler found\nand much more") from OSError("g++ is missing\nsecond line")

    monkeypatch.setattr("torch.compile", fail)
    assert why_not_compiled.__wrapped__() == "OSError: g++ is missing"


def test_a_compiler_that_works_has_nothing_to_tell(monkeypatch):
    monkeypatch.setattr("torch.compile", lambda function, **_: function)
    assert why_not_compiled.__wrapped__() is None
