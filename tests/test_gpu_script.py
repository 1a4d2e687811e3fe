"""What `benchmarks/gpu.sh` says before it runs anything."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"


def run(*words, **environment):
    return subprocess.run(
        [str(SCRIPT), *words], capture_output=True, text=True, env=os.environ | environment, timeout=60, check=False
    )


def test_without_a_word_it_says_how_it_is_used():
    for words in ((), ("faster",)):
        done = run(*words)
        assert done.returncode == 2
        for word in ("correctness", "speed", "rehearse"):
            assert f"benchmarks/gpu.sh {word}" in done.stdout


def test_missing_packages_are_named(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # without what is installed
    bare.chmod(0o755)
    done = run("speed", PYTHON=str(bare))
    assert done.returncode == 1
    assert "missing packages: torch transformers" in done.stderr
    assert "WHEELS=FOLDER" in done.stderr
