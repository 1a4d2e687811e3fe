"""Every check between passes is on, and transformers' advice off, before anything is imported."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["ESTFX_VERIFY"] = "2"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

logging.getLogger("torch.__trace").disabled = True  # else pytest formats every line of it: four times slower

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # the models are tiny, and several test processes share the cores


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _policies_are_put_back() -> Iterator[None]:
    """What a test, or a block of the documentation, registers is no other test's to know."""
    from estfx.draws import POLICIES

    before = dict(POLICIES)
    yield
    POLICIES.clear()
    POLICIES.update(before)


@pytest.fixture(autouse=True)
def _logging_is_enabled_again() -> Iterator[None]:
    """A page of the documentation may silence all logs of the process; the next test may read them."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)


GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write tests/golden anew instead of comparing with it"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a graph's text with the file of that name in tests/golden, source lines left out."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        text = re.sub(r"# \S+:\d+(; )?", "# ", text)
        text = re.sub(r" +# ?$", "", text, flags=re.MULTILINE)
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert text == path.read_text()

    return check
