import subprocess
import sys
from pathlib import Path

import pytest


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent)
    # no torch is needed to read switches, so the package itself is left out
    program = f"""
import sys, types
package = types.ModuleType("estfx"); package.__path__ = [{root!r} + "/estfx"]
sys.modules["estfx"] = package
import estfx.switches as switches
print(switches.VERIFY, switches.DUMP)
"""
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        ({}, "1 None"),
        ({"ESTFX_VERIFY": "0"}, "0 None"),
        ({"ESTFX_VERIFY": "2"}, "2 None"),
        ({"ESTFX_DUMP": "graphs/here"}, "1 graphs/here"),
        ({"ESTFX_DUMP": ""}, "1 None"),
    ],
)
def test_switches_are_read_from_the_environment(environment: dict[str, str], printed: str) -> None:
    done = run(**environment)
    assert done.stdout.strip() == printed, done.stderr


@pytest.mark.parametrize("text", ["3", "yes", "", "-1"])
def test_refusal_of_an_unknown_level(text: str) -> None:
    done = run(ESTFX_VERIFY=text)
    assert done.returncode == 1
    assert f"estfx.errors.EstfxError: ESTFX_VERIFY is {text!r}; it may be 0, 1 or 2." in done.stderr


def test_tests_run_at_the_highest_level() -> None:
    from estfx import switches

    assert switches.VERIFY == 2
