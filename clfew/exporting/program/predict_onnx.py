"""Prints clfew predict's CSV: python predict_onnx.py classifier.onnx image.jpg folder/ > table.csv"""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = {k: json.loads(v) for k, v in network.get_modelmeta().custom_metadata_map.items()}
given, above, table = sys.argv[2:], about["accept_above"], csv.writer(sys.stdout, lineterminator="\n")
sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # Of names in other encodings.
paths = [p for a in given for p in sorted(map(str, Path(a).rglob("[!.]*"))) or [a]]
formula = re.compile(r"(?<![^;\t])(?='*[=+\-@\t\r\n＝＋－＠﹦﹢﹣﹫−])")  # That a spreadsheet would run.
table.writerow(["path", "label", "probability", "top", *["decision"][: above is not None], "error"])
for path in [p for p in paths if p in given or Path(p).suffix.lower() in about["endings"]]:
    top, problem = [], ""
    try:
        image = Image.open(path)
        image.draft("RGB", (about["side"], about["side"]))  # Of a large JPEG file, what is needed.
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F"):
            raise ValueError("its numbers have no known range")
        if image.mode.startswith("I"):  # 16 bits of grey.
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        p = network.run(None, {"images": np.asarray(image.convert("RGB"))[None]})[0][0].astype(float)
        t = np.array(about["limits"])  # A class with a limit is first if it reaches it, else last.
        rank = np.where((t > 0) & (p >= t), 9 + p / t.clip(1e-12), p - 9 * (t > 0))
        order = sorted(range(len(p)), key=lambda c: (c != rank.argmax(), -p[c]))
        top = [[about["classes"][c], p[c]] for c in order[:3]]
    except Exception as error:
        problem = f"cannot be decoded ({error})"
    sure = [] if above is None else ["accept" if top and top[0][1] > above else "review"]
    cells = [path, *(top[0] if top else ["", ""]), json.dumps(top) if top else "", *sure, problem]
    table.writerow([formula.sub("'", cell) if isinstance(cell, str) else cell for cell in cells])
