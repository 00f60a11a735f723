"""Shared by the benchmarks: a description of the machine, and results that survive an interruption."""

import datetime
import json
import os
import platform
from pathlib import Path


def environment():
    """Returns the machine and the versions, for the beginning of a results file."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        processor = next(
            (x.split(":")[1].strip() for x in lines if x.startswith("model name")), processor
        )
        flags = next((x.split() for x in lines if x.startswith("flags")), [])
        wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
        processor += f" ({', '.join(wide) or 'no AVX2'})"
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


class Results:
    """Finished measurements by name in a JSON file. What the file contains is not measured again."""

    def __init__(self, path):
        self.path = Path(path)
        self.done = json.loads(self.path.read_text())["results"] if self.path.exists() else {}

    def get(self, key, measure):
        """Returns the result under `key`, from the file or else from `measure()`."""
        if key not in self.done:
            self.done[key] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(environment() | {"results": self.done}, indent=1) + "\n")
            os.replace(temporary, self.path)
        return self.done[key]
