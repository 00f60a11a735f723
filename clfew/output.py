"""Prints results on stdout, in the requested format."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clfew import console
from clfew.errors import UserError
from clfew.models.metadata import read_metadata
from clfew.report.text import (
    accepted_words,
    beside,
    counts_words,
    flatten,
    percent,
    shares_words,
)
from clfew.runs.files import csv_line, csv_text
from clfew.runs.folders import ARTIFACTS, read_config

if TYPE_CHECKING:
    from clfew.commands.predict import Prediction
    from clfew.data.cache_listing import CacheListing


def print_predictions(
    predictions: "Iterable[Prediction]", output: str, has_decision: bool = False
) -> int:
    """Prints each row as soon as it is predicted and returns how many rows have an error.

    output: "table", "json", "jsonl" or "csv". has_decision: whether rows say what may be accepted.
    """
    columns = ["decision"] if has_decision else []
    writers: dict[str, Callable[[Iterable[Prediction]], None]]
    writers = {"table": _lines, "json": _json_array, "jsonl": _json_lines}
    writers["csv"] = partial(_csv, columns=columns)
    failed = 0

    def counted() -> "Iterable[Prediction]":
        nonlocal failed
        for prediction in predictions:
            failed += prediction.error is not None
            yield prediction

    writers[output](counted())
    return failed


def _lines(predictions: "Iterable[Prediction]") -> None:
    """Prints one line per image. A table with fitted columns would have to wait for the last row."""
    for prediction in predictions:
        if prediction.error is not None:
            text = f"cannot be read: {prediction.error}"
        else:
            text = "   ".join(
                f"{label} {100 * probability:.1f} %" for label, probability in prediction.top
            )
        decision = f"   {prediction.decision}" if prediction.decision else ""
        console.write_out(f"{console.printable(prediction.path)}  {console.printable(text)}{decision}\n")


def _dumps(prediction: "Prediction") -> str:
    # A name that is not UTF-8 contains lone surrogates, which can only be written as escapes.
    return json.dumps(prediction.as_row(), ensure_ascii=True)


def _json_array(predictions: "Iterable[Prediction]") -> None:
    separator = "["
    for prediction in predictions:
        console.write_data(f"{separator}\n  {_dumps(prediction)}")
        separator = ","
    console.write_data("\n]\n" if separator == "," else "[]\n")


def _json_lines(predictions: "Iterable[Prediction]") -> None:
    for prediction in predictions:
        console.write_data(_dumps(prediction) + "\n")


def _csv(predictions: "Iterable[Prediction]", columns: list[str]) -> None:
    console.write_data(csv_text(["path", "label", "probability", "top", *columns, "error"], []))
    for prediction in predictions:
        row = prediction.as_row()
        top = json.dumps(row["top"]) if row["top"] else ""
        line = [row["path"], row["label"], row["probability"], top]
        console.write_data(csv_line([*line, *(row[name] for name in columns), prediction.error]))


def describe_artifact(named: str) -> dict[str, Any]:
    """Returns what `clfew info` prints for an artifact or a run folder. Raises UserError for others."""
    path = Path(named)
    if not path.is_dir():
        metadata, shapes = read_metadata(path)
        weights = sum(
            _count(shape)
            for name, shape in shapes.items()
            if not name.startswith(("seen.", "evidence."))
        )
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
        f"{path} is not a run folder of clfew.", "name a run folder such as runs/pretrain-1, or a file."
    )


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def print_caches(caches: "list[CacheListing]") -> None:
    """Prints the table of `clfew cache`."""
    rows = [
        (c.source, f"{c.images:,}", f"{c.side} px", f"{c.bytes / 2**20:,.1f} MiB", c.used)
        for c in caches
    ]
    console.print_table(("source", "images", "side", "size", "last used"), rows)


def print_json(value: Any) -> None:
    console.write_data(json.dumps(value, ensure_ascii=True, indent=2) + "\n")


def print_settings(settings: dict[str, Any]) -> None:
    """Prints nested settings as a table of dotted names and values."""
    console.print_table(("field", "value"), flatten(settings), right_align=False)


def _no_accuracy(result: dict[str, Any]) -> str:
    """Returns in words why a classifier has not been tested."""
    if result.get("test_sample"):
        return "no accuracy: no image of the test sample that can be tested on has a label"
    if "chosen" in result.get("label_origins", {}):
        return "no accuracy: chosen images are no test; label a random sample: clfew select --test 50"
    return "no labelled images were left to test on"


def print_finetuning(result: dict[str, Any]) -> None:
    """Prints the table of the label samples, and a line with their mean accuracy and its interval."""
    samples = result["draws"]
    start = ["start"] * any("start" in s for s in samples)  # Where there were several to choose from.
    rows = [
        (f"seed {s['seed']}", s["labels"], s["mode"], *(s[n] for n in start), percent(s["accuracy"]))
        for s in samples
    ]
    console.print_table(("label sample", "labels", "mode", *start, "accuracy"), rows)
    if "mean" not in result:
        console.write_out(f"{_no_accuracy(result)}\n")
        _print_counts(result)
        return
    low, high = result["ci95"]
    count = len(samples)
    std = f" ± {100 * result['std']:.1f} over {count} label samples" if count > 1 else ""
    console.write_out(
        f"accuracy {percent(result['mean'])}{std}, 95 % interval {percent(low)} to "
        f"{percent(high)}, on {result['test_images']:,} test images\n"
    )
    if result.get("baselines"):  # A result of before had none.
        header, *rows = beside(result["means"], result["baselines"])
        console.print_table(header, rows)
    if shares := result.get("class_shares"):
        console.write_out(f"{shares_words(shares)}\n")
    _print_counts(result)


def _print_counts(result: dict[str, Any]) -> None:
    """Prints how many images each class has, where something is known of it."""
    if counts := result.get("expected_counts"):
        console.write_out(f"{counts_words(counts)}\n")


def print_distillation(result: dict[str, Any]) -> None:
    """Prints teacher and student in one table, and whether the student is kept."""
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


def print_export(result: dict[str, Any]) -> None:
    """Prints how the exported file compares with its classifier, and the files that were written."""
    console.write_out(f"{console.printable(result['words'])}\n")
    if (small := result["int8"]) is not None:
        kept = "8 bits: kept" if small["file"] else "8 bits: no file"
        console.write_out(f"{kept}: {console.printable(small['why'])}\n")
    rows = [(result["file"], f"{result['bytes'] / 2**20:,.1f} MiB")]
    if small is not None and small["file"]:
        rows.append((small["file"], f"{small['bytes'] / 2**20:,.1f} MiB"))
    console.print_table(("file", "size"), rows)


def print_report(report: dict[str, Any]) -> None:
    """Prints the report of `clfew eval` as tables and sentences."""
    (low, high), largest = report["ci95"], report["largest_class"]
    columns = ("precision", "recall", "average_precision")
    rows = [(c["class"], c["n"], *(percent(c[name]) for name in columns)) for c in report["per_class"]]
    console.print_table(("class", "images", "precision", "recall", "average precision"), rows)
    for pair in report["most_confused"][:5]:
        true, predicted = console.printable(pair["true"]), console.printable(pair["predicted"])
        console.write_out(f"{pair['count']:>5} × {true} predicted as {predicted}\n")
    console.write_out(
        f"accuracy {percent(report['accuracy'])}, 95 % interval {percent(low)} to {percent(high)}, "
        f"on {report['n']:,} images\n"
        f"always naming {console.printable(largest['class'])}: {percent(largest['fraction'])}\n"
        f"balanced accuracy {percent(report['balanced_accuracy'])}, "
        f"expected calibration error {percent(report['ece'])}{_uncalibrated(report)}\n"
        f"{accepted_words(report['accepted'])}\n"
    )
    if report["baselines"]:
        header, *rows = beside(report, report["baselines"])
        console.print_table(header, rows)
    for step in ("pretraining", "finetuning"):
        if report[f"seen_in_{step}"]:
            steps = f"{step}, propagation or distillation" if step == "pretraining" else step
            count = report[f"seen_in_{step}"]
            console.write_out(f"{count:,} of these images were seen in {steps}\n")


def _uncalibrated(report: dict[str, Any]) -> str:
    """Returns the words for the calibration error before temperature scaling, "" if it was not used."""
    if report["temperature"] == 1:
        return ""
    return f", {percent(report['ece_uncalibrated'])} before calibration"


def print_check(result: dict[str, Any]) -> None:
    """Prints what `clfew check` found: a table of the classes, one of the findings, and how to go on."""
    classes = result["classes"]
    splits = [split for split in ("train", "val", "test") if result["splits"].get(split)]
    splits = splits if len(splits) > 1 else []
    rows = [
        (row["class"], f"{row['images']:,}", *(f"{row[s]:,}" for s in splits))
        for row in classes[:MOST_CLASSES]
    ]
    if len(classes) > MOST_CLASSES:
        rest = classes[MOST_CLASSES:]
        sums = [f"{sum(row[s] for row in rest):,}" for s in ("images", *splits)]
        rows.append((f"and {len(rest):,} more", *sums))
    if rows:
        console.print_table(("class", "images", *splits), rows)
    console.write_out(f"{_files_in_words(result)}\n")
    if result["findings"]:
        found = [
            (row["title"], f"{row['count']:,}", "yes" if row["needs_person"] else "", _example(row))
            for row in result["findings"]
        ]
        console.print_table(("found", "count", "to decide", "for example"), found, right_align=False)
    needed = result["needs_person"]
    looked = {"listing": "names and headers", "pixels": "names and pixels"}
    where = looked.get(result["looked_at"], "names, pixels and features")
    done = f"{needed} findings are yours to decide" if needed != 1 else "1 finding is yours to decide"
    console.write_out(f"looked at {where}: {done if needed else 'nothing that you have to decide'}\n")
    if result["fixed"]:
        console.write_out(f"the list holds {result['fixed']}\n")


MOST_CLASSES = 30
"""The most classes that the table of `clfew check` names."""


def _example(row: dict[str, Any]) -> str:
    """Returns the first things of a finding in words."""
    if not row["images"]:
        return "; ".join(row["notes"][:3])
    first = row["images"][0]
    return " = ".join(first[:2]) if len(first) > 1 else ": ".join([*first, *row["notes"][:1]])


def _files_in_words(result: dict[str, Any]) -> str:
    """Returns how many images there are and what the headers of their files say."""
    said = [f"{console.plural(result['images'], 'image')}, {result['labelled']:,} with a label"]
    files = result["files"]
    if files["formats"]:
        said.append(", ".join(f"{count:,} {name}" for name, count in files["formats"].items()))
        said.append(", ".join(f"{count:,} {name}" for name, count in files["pixels"].items()))
        smallest, middle, largest = files["shorter_side"].values()
        some = f"{smallest:,} to {largest:,} pixels, {middle:,} in the middle"
        said.append(f"shorter sides of {some if smallest < largest else f'{smallest:,} pixels'}")
    if files["headers"] < result["images"]:
        said.append(f"by the headers of {files['headers']:,} of them")
    return "; ".join(filter(None, [*said, result["groups"]]))


def print_selection(result: dict[str, Any]) -> None:
    """Prints what `clfew select` chose: a line for each kind of row of the list."""
    so_far, rows = result["so_far"], []
    if so_far["rows"] or so_far["test_rows"]:
        labelled = so_far["labelled"] + so_far["test_labelled"]
        rows.append(
            ("so far", f"{so_far['rows'] + so_far['test_rows']:,}", f"{labelled:,} have a label")
        )
    if result["chosen"]:
        rows.append((result["strategy"], f"{len(result['chosen']):,}", result["reason"]))
    if result["drawn"]:
        rows.append(("test sample", f"{result['drawn']:,}", "drawn at random, to test on"))
    console.print_table(("rows", "images", "why"), rows, right_align=False)
    console.write_out(f"{result['list']}\n")
    if not result["test"] and not result["own_test"]:
        console.write_out(
            "There is no test sample: chosen images are no fair test. --test 50 draws one at random.\n"
        )


def print_rows(rows: list[dict[str, Any]], output: str) -> None:
    """Prints rows that have the same fields as lines of JSON ("jsonl") or as CSV, with lists as JSON."""
    if output == "jsonl":
        for row in rows:
            console.write_data(json.dumps(row) + "\n")
        return
    console.write_data(csv_line(list(rows[0])))
    for row in rows:
        console.write_data(csv_line([json.dumps(v) if isinstance(v, list) else v for v in row.values()]))


def print_comparison(result: dict[str, Any]) -> None:
    """Prints the table of accuracies, a table of the pretraining runs, and the methods that failed."""
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
