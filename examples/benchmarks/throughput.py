"""Images per second of SimCLR training: clfew, lightly-train, lightly and a plain PyTorch loop.

    python examples/benchmarks/throughput.py DATA [--peers FOLDER] [--only CASE] [--repeats 3]

DATA holds the folders `cifar10`, `aerial` and `photos` (class folders of JPEG files; the first two under
`train/`). In every case all tools train the same network on the same files at the same image size and
batch, one after the other, in three rounds; each trains for `--seconds` after its first steps. The other
tools are installed into a separate environment in FOLDER on first use (5 GB); see `peers.py` for how
each is run. `lightly-train best` is lightly-train in bfloat16, if the processor computes in it. Finished
runs are kept in the results file, so that an interrupted benchmark can be resumed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Results

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
PACKAGES = ["lightly-train==0.18.0", "lightly==1.6.0"]
# Name: network, pixels, images, batch, and the ratio aimed for.
CASES = {
    "32-resnet18": ("stock-resnet18", 32, "cifar10", 128, 2),
    "32-small": ("resnet8-w32", 32, "cifar10", 128, 5),
    "96-resnet18": ("stock-resnet18", 96, "aerial", 64, 2),
    "224-resnet18": ("stock-resnet18", 224, "photos", 16, 3),
    "224-small": ("resnet8-w32", 224, "photos", 64, 3),
}
REPEATED = {"aerial": 3, "photos": 20}
"""How often the files of a small set are copied, so that it has a few thousand."""


def peers_python(folder):
    """Returns the Python interpreter of the other tools' environment, which it creates if missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def images_of(data, name, scratch):
    """Returns the folder of class folders of a set; a small set's files are copied several times."""
    source = data / name / "train" if (data / name / "train").is_dir() else data / name
    copies = REPEATED.get(name, 1)
    if copies == 1:
        return source
    target = scratch / name
    for file in source.rglob("*.jp*g") if not target.exists() else ():
        for copy in range(copies):
            to = target / file.parent.name / f"{file.stem}-{copy}{file.suffix}"
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
    return target


def run_side(side, case, options, scratch):
    encoder, size, images, batch, _ = CASES[case]
    folder = images_of(options.data, images, scratch)
    common = [
        "--images",
        folder,
        "--encoder",
        encoder,
        "--size",
        size,
        "--batch",
        batch,
        "--seconds",
        options.seconds,
    ]
    if side == "clfew":
        command = [sys.executable, HERE / "clfew_side.py", *common]
    else:
        name, _, variant = side.partition(" ")
        precision = "bf16-mixed" if variant == "best" else "auto"
        command = [peers_python(options.peers), HERE / "peers.py", name, *common]
        command += ["--precision", precision]
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "PATH": "/usr/bin:/bin",
        "HOME": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
    }
    # A tool may stop its loader workers by killing its process group, so it needs a separate group.
    result = subprocess.run(
        list(map(str, command)),
        env=environment,
        capture_output=True,
        text=True,
        cwd=scratch,
        start_new_session=True,
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"{side} in {case} failed:\n{result.stderr[-2000:]}")
    return json.loads(lines[-1])["images_per_second"]


def computes_bf16():
    import torch

    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "throughput.json")
    options = parser.parse_args()
    options.data, options.peers = options.data.resolve(), options.peers.absolute()
    sides = ["clfew", "lightly-train", "lightly", "plain"]
    if computes_bf16():
        sides.insert(2, "lightly-train best")
    results = Results(options.out)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for case in [options.only] if options.only else CASES:
            encoder, size, _, batch, target = CASES[case]
            speeds = {side: [] for side in sides}
            for repeat in range(options.repeats):
                for side in sides:
                    key = f"{case}/{side}/{repeat}"
                    speeds[side].append(
                        results.get(key, lambda: run_side(side, case, options, scratch))  # noqa: B023
                    )
            print(f"\n{encoder}, {size} px, batch {batch}; images/s: minimum, median, maximum")
            for side in sides:
                low, middle, high = min(speeds[side]), statistics.median(speeds[side]), max(speeds[side])
                ratio = statistics.median(speeds["clfew"]) / middle
                line = f"  {side:<20} {low:8.1f} {middle:8.1f} {high:8.1f}"
                if side != "clfew":
                    line += f"   clfew is {ratio:.2f} times as fast"
                    line += f" (aim: {target})" if target else ""
                print(line, flush=True)


if __name__ == "__main__":
    main()
