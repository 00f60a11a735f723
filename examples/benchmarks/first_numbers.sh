#!/usr/bin/env bash
# Accuracy from few labels after five minutes of pretraining, beside the same network from scratch.
#
#     examples/benchmarks/first_numbers.sh DATA OUT
#
# DATA holds sign-digits/ and aerial/, each with train/CLASS/ and test/CLASS/. Goes on where it was
# stopped: what OUT already holds is not run again. Ends with OUT/summary.json.
set -euo pipefail
data=$1 out=$2
mkdir -p "$out"

few() {  # few NAME SOURCE LABELS ARGUMENTS...
  local name=$1 source=$2 labels=$3
  shift 3
  [ -e "$out/$name/result.json" ] ||
    clfew finetune "$data/$source" --labels "$labels" --repeat 5 --out "$out/$name" "$@"
}

measure() {  # measure SET LABELS ARGUMENTS...
  local set=$1 labels=$2
  shift 2
  [ -e "$out/$set/encoder.safetensors" ] || clfew pretrain "$data/$set" --init scratch --minutes 5 --out "$out/$set" "$@"
  for mode in linear full propagate auto; do
    few "$set-$mode" "$set" "$labels" --from "$out/$set" --mode "$mode"
  done
  few "$set-scratch" "$set" "$labels" --from scratch --encoder resnet8-w32 --size 64 "$@"
}

measure sign-digits 2/class --no-flip  # A mirrored hand is another sign.
measure aerial 5/class

python - "$out" <<'PYTHON'
import json, sys
from pathlib import Path
out = Path(sys.argv[1])
rows = []
for path in sorted(out.glob("*/result.json")):
    result = json.loads(path.read_text())
    rows.append({
        "name": path.parent.name, "labels": result["draws"][0]["labels"], "mean": result["mean"],
        "std": result["std"], "ci95": result["ci95"],
        "draws": [draw["accuracy"] for draw in result["draws"]],
        "modes": [draw["mode"] for draw in result["draws"]],
    })
    print(f"{rows[-1]['name']:<24} {result['mean']:.3f} ± {result['std']:.3f}")
(out / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
PYTHON
