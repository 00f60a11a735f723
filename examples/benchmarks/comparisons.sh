#!/usr/bin/env bash
# All pretraining methods under one budget: ten minutes each on the aerial photographs and on 10,000
# images of CIFAR-10, beside raw pixels, a random encoder and the same network from scratch.
#
#     examples/benchmarks/comparisons.sh DATA OUT
#
# DATA holds aerial/ and cifar10/, each with train/CLASS/ and test/CLASS/. Wants the machine for itself,
# as what ten minutes are worth depends on what else runs. Goes on where it was stopped. Ends with
# results/compare-SET.json and .png beside this script.
set -euo pipefail
data=$(realpath "$1") out=$(realpath -m "$2")
results=$(realpath "$(dirname "$0")")/results
mkdir -p "$out"

if [ ! -e "$out/cifar10-10k" ]; then  # The first thousand training images of each class.
  mkdir -p "$out/cifar10-part/train"
  ln -sfn "$data/cifar10/test" "$out/cifar10-part/test"
  for class in "$data"/cifar10/train/*/; do
    to="$out/cifar10-part/train/$(basename "$class")"
    mkdir -p "$to"
    find "$class" -type f | sort | sed -n 1,1000p | xargs cp -t "$to"
  done
  mv "$out/cifar10-part" "$out/cifar10-10k"
fi

comparison() {  # comparison NAME SOURCE ARGUMENTS...
  local run=$out/$1 source=$2
  if [ ! -e "$run/result.json" ]; then
    if [ -e "$run/config.json" ]; then
      cd "$(dirname "$source")"
      clfew compare --resume "$run"
    else
      cd "$(dirname "$source")"
      clfew compare "$(basename "$source")" --minutes 10 --draws 5 --out "$run" "${@:3}"
    fi
  fi
  cp "$run/result.json" "$results/compare-$1.json"
  cp "$run/compare.png" "$results/compare-$1.png"
}

comparison aerial "$data/aerial" --size 64 --labels 2/class,5/class,20/class
comparison cifar10 "$out/cifar10-10k" --size 32 --labels 1%,5%,10%
