"""Results on stdout, in the format asked for."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clfew import console
from clfew.errors import UserError
from clfew.models.metadata import read_metadata
from clfew.report.text import flatten, percent
from clfew.runs.files import csv_line, csv_text
from clfew.runs.folders import ARTIFACTS, read_config

if TYPE_CHECKING:
    from clfew.commands.predict import Prediction
    from clfew.data.cache_listing import CacheListing


def print_predictions(predictions: "Iterable[Prediction]", output: str) -> int:
    """Prints rows as they come ("table", "json", "jsonl" or "csv"); returns how many have an error."""
    write = {"table": _lines, "json": _json_array, "jsonl": _json_lines, "csv": _csv}[output]
    failed = 0

    def counted() -> "Iterable[Prediction]":
        nonlocal failed
        for prediction in predictions:
            failed += prediction.error is not None
            yield prediction

    write(counted())
    return failed


def _lines(predictions: "Iterable[Prediction]") -> None:
    """One line an image. A table that fits its columns would have to wait for the last row."""
    for prediction in predictions:
        if prediction.error is not None:
            text = f"cannot be read: {prediction.error}"
        else:
            text = "   ".join(f"{label} {100 * share:.1f} %" for label, share in prediction.top)
        console.write_out(f"{console.printable(prediction.path)}  {console.printable(text)}\n")


def _dumps(prediction: "Prediction") -> str:
    # Names that are not UTF-8 come as lone surrogates, which only an escape can carry.
    return json.dumps(prediction.as_row(), ensure_ascii=True)


def _json_array(predictions: "Iterable[Prediction]") -> None:
    separator = "["
    for prediction in predictions:
        console.write_out(f"{separator}\n  {_dumps(prediction)}")
        separator = ","
    console.write_out("\n]\n" if separator == "," else "[]\n")


def _json_lines(predictions: "Iterable[Prediction]") -> None:
    for prediction in predictions:
        console.write_out(_dumps(prediction) + "\n")


def _csv(predictions: "Iterable[Prediction]") -> None:
    console.write_out(csv_text(["path", "label", "probability", "top", "error"], []))
    for prediction in predictions:
        row = prediction.as_row()
        top = json.dumps(row["top"]) if row["top"] else ""
        line = [row["path"], row["label"], row["probability"], top, prediction.error]
        console.write_out(csv_line(line))


def describe_artifact(named: str) -> dict[str, Any]:
    """What `clfew info` says of an artifact, or of a run folder. Raises UserError."""
    path = Path(named)
    if not path.is_dir():
        metadata, shapes = read_metadata(path)
        weights = sum(_count(shape) for name, shape in shapes.items() if not name.startswith("seen."))
        return {"file": str(path), "bytes": path.stat().st_size, "weights": weights, **asdict(metadata)}
    config = read_config(path)
    for name in ARTIFACTS.values():
        if (path / name).is_file():
            return {
                "run": str(path),
                "created": config.get("created"),
                **describe_artifact(str(path / name)),
            }
    if config:
        state = "can be resumed" if (path / "state").exists() else "has no artifact"
        return {"run": str(path), "state": state, **config}
    raise UserError(
        f"{path} is no run of clfew.", "name a run folder such as runs/pretrain-1, or a file."
    )


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def print_caches(caches: "list[CacheListing]") -> None:
    """The table of `clfew cache`."""
    rows = [
        (s.source, f"{s.images:,}", f"{s.side} px", f"{s.bytes / 2**20:,.1f} MiB", s.used)
        for s in caches
    ]
    console.print_table(("source", "images", "side", "size", "last used"), rows)


def print_json(value: Any) -> None:
    console.write_out(json.dumps(value, ensure_ascii=True, indent=2) + "\n")


def print_settings(settings: dict[str, Any]) -> None:
    """Nested settings as a table of dotted names and values."""
    console.print_table(("field", "value"), flatten(settings), right_align=False)


def print_finetuning(result: dict[str, Any]) -> None:
    """The table of the draws and one line with their mean and interval."""
    draws = result["draws"]
    rows = [(f"seed {d['seed']}", d["labels"], d["mode"], percent(d["accuracy"])) for d in draws]
    console.print_table(("draw", "labels", "mode", "accuracy"), rows)
    if "mean" not in result:
        console.write_out("no labelled images were left to test on\n")
        return
    low, high = result["ci95"]
    spread = f" ± {100 * result['std']:.1f} over {len(draws)} draws" if len(draws) > 1 else ""
    console.write_out(
        f"accuracy {percent(result['mean'])}{spread}, 95 % interval {percent(low)} to "
        f"{percent(high)}, on {result['test_images']:,} test images\n"
    )


def print_distillation(result: dict[str, Any]) -> None:
    """Teacher and student beside each other, and which one stays."""
    verdict = result["verdict"]
    total = verdict["held_out"]
    rows = [
        (
            name,
            f"{verdict[f'{name}_hits']} of {total}" if total else "–",
            percent(verdict[f"{name}_agreement"] if total else None),
            percent(result[name]),
        )
        for name in ("teacher", "student")
    ]
    console.print_table(("model", "held-out labels", "agreement", "test accuracy"), rows)
    kept = "the student is kept" if result["kept"] else "the student is not kept"
    console.write_out(f"{kept}: {result['reason']}\n")


def print_report(report: dict[str, Any]) -> None:
    """What `clfew eval` found, on a screen."""
    low, high = report["ci95"]
    rows = [
        (c["class"], c["n"], percent(c["precision"]), percent(c["recall"])) for c in report["per_class"]
    ]
    console.print_table(("class", "images", "precision", "recall"), rows)
    for pair in report["most_confused"][:5]:
        true, predicted = console.printable(pair["true"]), console.printable(pair["predicted"])
        console.write_out(f"{pair['count']:>5} × {true} taken for {predicted}\n")
    console.write_out(
        f"accuracy {percent(report['accuracy'])}, 95 % interval {percent(low)} to {percent(high)}, "
        f"on {report['n']:,} images\n"
        f"balanced accuracy {percent(report['balanced_accuracy'])}, "
        f"expected calibration error {percent(report['ece'])}{_before(report)}\n"
    )
    for step in ("pretraining", "finetuning"):
        if report[f"seen_in_{step}"]:
            console.write_out(f"{report[f'seen_in_{step}']:,} of these images were seen in {step}\n")


def _before(report: dict[str, Any]) -> str:
    """The calibration error without the temperature, where there is one."""
    if report["temperature"] == 1:
        return ""
    return f", {percent(report['ece_uncalibrated'])} before calibration"


def print_rows(rows: list[dict[str, Any]], output: str) -> None:
    """Rows with the same fields as lines of JSON ("jsonl") or as CSV; lists become JSON there."""
    if output == "jsonl":
        for row in rows:
            console.write_out(json.dumps(row) + "\n")
        return
    console.write_out(csv_line(list(rows[0])))
    for row in rows:
        console.write_out(csv_line([json.dumps(v) if isinstance(v, list) else v for v in row.values()]))


def print_comparison(result: dict[str, Any]) -> None:
    """The table on stdout, and what each method took."""
    from clfew.report.comparison import header, lines

    console.print_table(header(result), lines(result))
    console.print_table(
        ["pretraining", "epochs", "seconds", "images/s", "optimizer"],
        [
            [
                r["method"],
                f"{r['epochs']:.3g}",
                f"{r['seconds']:.0f}",
                f"{r['images_per_second']:.0f}",
                f"{r['optimizer']} {r['learning_rate']:.2g}",
            ]
            for r in result["pretraining"]
        ],
    )
    for method, message in result["failed"].items():
        console.write_out(f"{method} failed: {console.printable(message)}\n")
