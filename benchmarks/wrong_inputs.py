"""A hundred wrong inputs of the command line: what is said, how soon, and what is left on the disk.

    python benchmarks/wrong_inputs.py [--only WORD]

Each is a process of its own, in a folder with a few files to be wrong with. A refusal must end with exit status 2 (1
for what cannot be had), say what was asked in one message without a traceback, leave no file, and come within 2 s. A
few that only the model itself can tell take as long as the import of torch and transformers. Seconds are those of the
whole process, the start of Python included.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import write

FILES = {
    "text.txt": "to be or not to be\n" * 50,
    "short.txt": "x",
    "rows.jsonl": '{"body": "no column of that name"}\n',
    "broken.jsonl": '{"text": \n',
    "broken.yaml": "stages: [",
    "bomb.yaml": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
    "list.yaml": "- 1\n- 2\n",
    "late.yaml": "stages: [{start: 5}]\ntotal_steps: 10\n",
    "order.yaml": "stages: [{start: 0, heads: 0.5}, {start: 0}]\ntotal_steps: 10\n",
    "over.yaml": "stages: [{start: 0, heads: 1.5}]\ntotal_steps: 10\n",
    "word.yaml": "stages: [{start: 0, heads: half}]\ntotal_steps: 10\n",
    "beyond.yaml": "stages: [{start: 0, heads: 0.5}, {start: 20}]\ntotal_steps: 10\n",
    "policy.yaml": "stages: [{start: 0}]\ntotal_steps: 10\npolicy: best\n",
    "run.yaml": "model: {name: gpt2}\ntrain: {total_steps: 10, steps: 5}\n",
    "section.yaml": "modell: {name: gpt2}\n",
    "deep.yaml": "a: " + "[" * 200 + "]" * 200 + "\n",
    "bench.json": '{"not": "a bench"}',
    "empty_config/config.json": "{}",
    "no_type/config.json": '{"n_layer": 2}',
    "odd_type/config.json": '{"model_type": "gtp2"}',
    "not_json/config.json": "{n_layer",
    "no_config/readme": "",
    "with_run/metrics.jsonl": '{"kind": "eval", "step": 0, "held_out_loss": 5.0}\n',
    "with_run/config.yaml": "model: {name: gpt2}\n",
    "broken_run/config.yaml": "model: [",
    "broken_run/metrics.jsonl": "",
    "factory.py": "import torch\n\ndef made(n: int = 1):\n    return 'a model'\n\ndef fails():\n"
    "    raise KeyError('inside')\n\ndef plain():\n    return torch.nn.Linear(2, 2)\n",
    "syntax.py": "def made(:\n",
    "imports.py": "import no_such_package\n\ndef made():\n    pass\n",
    "a_file": "",
}
TINY = "--config n_layer=2 --config n_embd=16 --config n_head=2 --config vocab_size=32 --config n_positions=32"
RUN = (
    "--set model.config.num_hidden_layers=2 --set model.config.hidden_size=16 --set model.config.num_attention_heads=2 "
    "--set data.seq_len=16 --set data.held_out_blocks=2 --set train.batch_size=2 --set train.compile=false "
    "--set train.total_steps=4"
)

# what is typed after `estfx`, by what the answer must say
CASES: dict[str, str] = {
    # models
    "inspect gtp2": "did you mean 'gpt2'",
    "inspect openai-community/gpt2": "Nothing is loaded from a hub",
    "inspect ./nowhere": "there is no folder './nowhere'",
    "inspect no_config": "holds no config.json",
    "inspect no_type": "has no model_type",
    "inspect empty_config": "has no model_type",
    "inspect odd_type": "did you mean 'gpt2'",
    "inspect not_json": "cannot be read",
    "inspect text.txt": "unknown model 'text.txt'",
    "inspect missing.py:made": "there is no file 'missing.py'",
    "inspect factory.py": "names no factory",
    "inspect factory.py:": "names no factory",
    "inspect factory.py:mad": "did you mean 'made'",
    "inspect factory.py:made": "returned a str",
    "inspect factory.py:fails": "KeyError",
    "inspect factory.py:made --config k=1": "unexpected keyword",
    "inspect factory.py:plain": "example_inputs",
    "inspect syntax.py:made": "cannot be imported",
    "inspect imports.py:made": "no_such_package",
    "inspect gpt2 --config n_layers=2": "n_layer",
    "inspect gpt2 --config n_layer": "expected key=value",
    "inspect gpt2 --config n_layer=[": "is not YAML",
    "inspect gpt2 --config n_layer=many": "n_layer",
    "inspect gpt2 --config n_layer=-1": "no layers found",
    "inspect gpt2 --config n_head=7 --config n_embd=16": "cannot be built",
    f"inspect gpt2 {TINY} --layers blocks.*": "blocks.*",
    "inspect": "Missing argument",
    "inspect gpt2 llama": "unexpected extra argument",
    "inspect gpt2 --jsn": "No such option",
    "inspct gpt2": "No such command",
    # plans
    "plan gtp2": "did you mean 'gpt2'",
    "plan gpt2 --target-saving 25": "pass 0.25",
    "plan gpt2 --target-saving 2": "pass 0.02",
    "plan gpt2 --target-saving 0": "between 0 and 1",
    "plan gpt2 --target-saving much": "--target-saving",
    f"plan gpt2 {TINY} --seq-len 16 --target-saving 0.9": "can save up to",
    "plan gpt2 --hardware h1000": "did you mean",
    "plan gpt2 --price 3": "add --hardware",
    "plan gpt2 --mfu 0.5": "add --hardware",
    "plan gpt2 --hardware h100 --mfu 40": "--mfu is a share",
    "plan gpt2 --hardware h100 --num-devices 0": "--num-devices",
    "plan gpt2 --hardware h100 --price -1": "--price",
    "plan gpt2 --hardware h100 --mfu 0.4 --bench bench.json": "either --mfu or --bench",
    f"plan gpt2 {TINY} --seq-len 16 --hardware h100 --bench bench.json": "bench.json",
    f"plan gpt2 {TINY} --seq-len 16 --hardware h100 --bench nowhere.json": "nowhere.json",
    "plan gpt2 --plot x.pdf": ".png or .svg",
    "plan gpt2 --plot nowhere/x.png": "there is no folder nowhere",
    "plan gpt2 --out no_config": "is a folder",
    "plan gpt2 --out nowhere/run.yaml": "there is no folder nowhere",
    "plan gpt2 --preset ets": "did you mean 'est'",
    "plan gpt2 --preset est --keep 0": "keep",
    "plan gpt2 --preset est --keep 1.5": "keep",
    "plan gpt2 --total-steps 0": "--total-steps",
    "plan gpt2 --total-steps 2 --preset est": "steps",
    "plan gpt2 --batch-size 0": "--batch-size",
    "plan gpt2 --seq-len 1": "--seq-len",
    f"plan gpt2 {TINY} --seq-len 64": "32 positions",
    "plan gpt2 nowhere.yaml": "nowhere.yaml",
    "plan gpt2 no_config": "a YAML file is wanted",
    "plan gpt2 broken.yaml": "broken.yaml",
    "plan gpt2 bomb.yaml": "bomb.yaml",
    "plan gpt2 deep.yaml": "deep.yaml",
    "plan gpt2 list.yaml": "list.yaml",
    "plan gpt2 late.yaml": "start",
    "plan gpt2 order.yaml": "start",
    "plan gpt2 over.yaml": "heads",
    "plan gpt2 word.yaml": "heads",
    "plan gpt2 beyond.yaml": "total_steps",
    "plan gpt2 policy.yaml": "policy",
    "plan gpt2 late.yaml --preset est": "either a schedule",
    # training
    "train --model gtp2": "did you mean 'gpt2'",
    "train nowhere.yaml": "nowhere.yaml",
    "train with_run": "with_run/config.yaml",
    "train broken.yaml": "broken.yaml",
    "train run.yaml": "steps",
    "train section.yaml": "did you mean 'model'",
    "train --set train.steps=5": "total_steps",
    "train --set train": "expected key=value",
    "train --set train=5": "train",
    "train --set train.total_steps=many": "total_steps",
    "train --set train.total_steps=0": "total_steps",
    "train --set train.total_steps=2": "steps",
    "train --set train.learning_rate=-1": "learning_rate",
    "train --set train.learning_rate=nan": "learning_rate",
    "train --set train.optimizer=adamw2": "unknown optimizer",
    "train --set train.precision=fp8": "precision",
    "train --set train.report_to=[wandbb]": "wandb",
    "train --set schedule.preset=ets": "est",
    "train --set schedule.keep=1.5": "keep",
    "train --set schedule.policy=best": "policy",
    "train --set data.source=nowhere.txt": "there is no file nowhere.txt",
    f"train {RUN} --set data.source=short.txt": "text",
    f"train {RUN} --set data.source=rows.jsonl": "'text'",
    f"train {RUN} --set data.source=broken.jsonl": "line 1",
    f"train {RUN} --set data.tokenizer=nowhere": "nowhere",
    "train --out a_file": "is a file",
    "train --out with_run": "holds a run",
    "train --out /proc/estfx": "cannot write",
    "train --resume": "--out",
    "train --resume --out nowhere": "holds no run",
    "train --resume --out broken_run": "broken_run",
    "train --accept-changes": "--resume",
    f"train {RUN} --set data.seq_len=16 --set model.config.n_positions=8": "16",
    # cuts
    "cut gpt2": "Missing option",
    "cut gpt2 --keep heads=0.5": "Missing option",
    "cut gtp2 --keep heads=0.5 --out cut": "did you mean 'gpt2'",
    "cut gpt2 --keep half --out cut": "names no part",
    "cut gpt2 --keep head=0.5 --out cut": "names no part",
    "cut gpt2 --keep heads=0 --out cut": "a share lies above 0",
    "cut gpt2 --keep heads=1.5 --out cut": "a share lies above 0",
    "cut gpt2 --keep heads=1 --out cut": "keeps the whole model",
    "cut gpt2 --keep heads=0.5 --out with_run": "is there already",
    "cut gpt2 --keep heads=0.5 --out a_file": "is there already",
    "cut gpt2 --keep heads=0.5 --by activation --out cut": "needs calibration text",
    "cut gpt2 --keep heads=0.5 --by best --out cut": "--by",
    "cut gpt2 --keep heads=0.5 --reform --out cut": "needs calibration text",
    "cut gpt2 --keep layers=0.5 --out cut": "needs calibration text",
    "cut gpt2 --keep heads=0.5 --plot x.pdf --out cut": ".png or .svg",
    "cut gpt2 --keep heads=0.5 --by activation --text nowhere.txt --out cut": "there is no file nowhere.txt",
    "cut gpt2 --keep heads=0.5 --by activation --text text.txt --out cut": "has random weights",
    "cut gpt2 --keep heads=0.5 --config n_layers=2 --out cut": "n_layer",
    # searches
    "search gpt2 --text text.txt --out found": "Missing option",
    "search gpt2 --target half --text text.txt --out found": "names no cost",
    "search gpt2 --target size=0.5 --text text.txt --out found": "names no cost",
    "search gpt2 --target parameters=1 --text text.txt --out found": "above 0 and below 1",
    "search gpt2 --target parameters=0.5 --text text.txt --out with_run": "is there already",
    "search gpt2 --target parameters=0.5 --text text.txt --out found --resume": "holds no search",
    "search gpt2 --target parameters=0.5 --text text.txt --out found": "has random weights",
    "search gpt2 --target parameters=0.5 --text nowhere.txt --out found": "there is no file nowhere.txt",
    "search gtp2 --target parameters=0.5 --text text.txt --out found": "did you mean 'gpt2'",
    "search gpt2 --target parameters=0.5 --text text.txt --population 1 --out found": "--population",
    # the others
    "dump gpt2 --preset est --stage 9": "the schedule has the stages 1 to 3",
    "dump gpt2 --json --code": "exclude each other",
    "dump gpt2 --format pdf": "--format",
    f"dump gpt2 {TINY} --pass find-head": "did you mean",
    "dump gpt2 --out nowhere/x.txt": "there is no folder nowhere",
    "dump gpt2 --schedule late.yaml": "start",
    "bench gtp2": "did you mean 'gpt2'",
    "bench gpt2 --set rounds=0": "rounds",
    "bench gpt2 --set arms=[whole]": "compiled",
    "report nowhere": "nowhere",
    "report text.txt": "is a file",
    "report no_config": "holds no run",
    "report with_run --format pdf": "--format",
    "models --json --nothing": "No such option",
}

# what shows only when a model is built: these wait for torch and transformers to be imported, the others must not
AFTER_IMPORT = frozenset(
    typed
    for typed in CASES
    if typed.startswith(("inspect factory.py:made", "inspect factory.py:fails", "inspect factory.py:plain"))
    or any(word in typed for word in ("n_layer=-1", "n_head=7", "--layers", "--target-saving 0.9", "--pass"))
)
SOON = 2.0  # seconds


def seen(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*") if "__pycache__" not in path.parts}


def tried(typed: str, says: str, folder: Path) -> dict[str, float | str]:
    before = seen(folder)
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "estfx", *shlex.split(typed)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    seconds = time.monotonic() - begun
    left = sorted(set(seen(folder).items()) - set(before.items()))
    faults = [
        *(["a traceback"] if "Traceback" in done.stderr else []),
        *([f"exit status {done.returncode}"] if done.returncode not in (1, 2) else []),
        *(["late"] if seconds > SOON and typed not in AFTER_IMPORT else []),
        *(["words on the standard output"] if done.stdout.strip() else []),
        *([f"does not say {says!r}"] if says not in " ".join(done.stderr.replace("│", " ").split()) else []),
        *([f"left {left}"] if left else []),
        *([word for word in ("[Errno", "Value error", "pydantic", "dataclass") if word in done.stderr]),
    ]
    return {
        "seconds": round(seconds, 2),
        "status": done.returncode,
        "faults": "; ".join(faults),
        "message": " ".join(done.stderr.split())[:400],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="tries those with this word")
    only = parser.parse_args().only
    rows: dict[str, dict[str, float | str]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, text in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for typed, says in CASES.items():
            if only in typed:
                rows[typed] = tried(typed, says, folder)
                print(f"{rows[typed]['seconds']:6.2f} s  {rows[typed]['faults'] or 'ok':40}  estfx {typed}", flush=True)
    faulty = [typed for typed, row in rows.items() if row["faults"]]
    late = sum(float(row["seconds"]) > SOON for row in rows.values())
    print(f"{len(rows)} tried, {len(faulty)} with faults, {late} over {SOON:g} s, all of which need the model")
    if not only:
        write("wrong_inputs", {}, rows)


if __name__ == "__main__":
    main()
