#!/usr/bin/env bash
# Everything that is to be seen on one GPU, in two runs of at most 8 minutes each, without a network.
#
#     benchmarks/gpu.sh correctness    # compiled against eager, CUDA graphs, FSDP2 on one rank, a kill and a resume
#     benchmarks/gpu.sh speed          # seconds over FLOPs by stage, against the whole and a model that is as small
#     benchmarks/gpu.sh rehearse       # both with tiny models on the CPU, to see that they run
#
# Results go to $OUT, or to benchmarks/results/. It needs torch 2.11 or later and transformers 5.17 or later. What is
# missing it names, and with WHEELS=FOLDER installs from there.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
export PYTHONPATH=$PWD TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

case "$what" in correctness | speed | rehearse) ;; *) sed -n '2,9p' "$0" | cut -c3- && exit 2 ;; esac

missing=$("$python" - <<'EOF'
import importlib.util

needed = {"torch": "torch", "transformers": "transformers", "networkx": "networkx", "pydantic": "pydantic",
          "typer": "typer", "rich": "rich", "sympy": "sympy", "yaml": "PyYAML", "jinja2": "jinja2", "numpy": "numpy",
          "accelerate": "accelerate"}
print(*(name for module, name in needed.items() if importlib.util.find_spec(module) is None))
EOF
)
if [ -n "$missing" ] && [ -n "${WHEELS:-}" ]; then
    # shellcheck disable=SC2086 # names
    "$python" -m pip install --no-index --find-links "$WHEELS" $missing
elif [ -n "$missing" ]; then
    echo "missing packages: $missing. Carry their wheels, and say where they lie: WHEELS=FOLDER benchmarks/gpu.sh $what" >&2
    exit 1
fi

case "$what" in
correctness) timeout 480 "$python" benchmarks/gpu_correctness.py ;;
speed) timeout 480 "$python" benchmarks/gpu_speed.py ;;
rehearse)
    "$python" benchmarks/gpu_correctness.py --tiny
    "$python" benchmarks/gpu_speed.py --tiny
    ;;
esac
