"""The model card of a classifier: README.md in its run, in the form that the Hugging Face hub reads.

Every number in it comes from the artifact's metadata or from the run's result.
"""

import re
from pathlib import Path
from typing import Any

from clfew.console import plural, printable
from clfew.data.sources import name_of
from clfew.finetuning.metrics import wilson_interval
from clfew.models.metadata import DISTILLED, ArtifactMetadata
from clfew.report.render import render_page
from clfew.report.text import SCORES_IN_WORDS, beside, percent
from clfew.runs.files import digest_of_text, write_text

CARD = "README.md"
MOST_CLASSES, MOST_WORST = 50, 5
_END = "\n<!-- written by clfew, {digest} -->\n"


def write_card(
    folder: Path,
    metadata: ArtifactMetadata,
    result: dict[str, Any],
    exported: dict[str, Any] | None = None,
) -> bool:
    """Writes the card of a run's classifier, unless somebody has written or changed one there. Returns
    whether it did. exported: see `model_card`."""
    path = folder / CARD
    if (path.exists() or path.is_symlink()) and not _is_ours(path):
        return False
    text = model_card(folder, metadata, result, exported)
    write_text(path, text + _END.format(digest=digest_of_text(text)))
    return True


def _is_ours(path: Path) -> bool:
    """Returns whether a card is as `write_card` wrote it."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return False
    found = re.search(_END.format(digest="([0-9a-f]{32})") + r"\Z", text)
    return found is not None and found[1] == digest_of_text(text[: found.start()])


def model_card(
    folder: Path,
    metadata: ArtifactMetadata,
    result: dict[str, Any],
    exported: dict[str, Any] | None = None,
) -> str:
    """Returns the card of a classifier as Markdown with a header in YAML.

    folder: its run. result: of this run (see `clfew finetune --format json`); {} where it is not known.
    exported: of the file that `clfew export` wrote beside the card, `file`, its name, `words`, how it
    compares, and `program`, whether predict_onnx.py runs it; None where there is none.
    """
    report = result.get("test_report") or {}
    worst = [row for row in report.get("per_class", []) if row["recall"] is not None]
    worst = sorted(worst, key=lambda row: (row["recall"], -row["n"]))[:MOST_WORST]
    worst = [row for row in worst if row["recall"] < 1]
    classes = metadata.classes[:MOST_CLASSES]
    more = len(metadata.classes) - len(classes)
    first = ", ".join(map(markdown, classes)) + (f" and {more:,} more" if more else "")
    title = f"{folder.resolve().name}: images of {name_of(metadata.data['finetune']['source'])}"
    has_timm = "timm:" in metadata.encoder
    return render_page(
        "card.md",
        {"markdown": markdown, "percent": percent},
        header=_header(metadata, report, title),
        title=title,
        classes=metadata.classes,
        first_classes=first,
        facts=_facts(metadata),
        labels=_labels(metadata, result),
        test=_test(metadata, result, report),
        beside=_beside(result),
        worst=worst,
        fails=_fails(report, worst),
        confused=report.get("most_confused", [])[:MOST_WORST],
        extra="'clfew[timm]'" if has_timm else "clfew",
        onnx=exported,
    )


def markdown(text: Any) -> str:
    """Returns text in which no character is taken for a mark of Markdown or HTML."""
    plain = printable(str(text)).replace("&", "&amp;")
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", plain)


def _header(metadata: ArtifactMetadata, report: dict[str, Any], title: str) -> str:
    """Returns the card's header, which says what the hub shows and searches for."""
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if report:
        source = name_of(metadata.data["finetune"]["source"])
        results = [
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=source,
                dataset_name=source,
                dataset_split="test",
                metric_type="f1" if name == "macro_f1" else "accuracy",
                metric_name=words,
                metric_value=round(report[name], 4),
            )
            for name, words in SCORES_IN_WORDS.items()
            if name in report
        ]
    data = ModelCardData(
        library_name="clfew",
        pipeline_tag="image-classification",
        tags=["clfew", "image-classification", "few-labels"],
        model_name=title,
        eval_results=results,
    )
    return str(data.to_yaml()).strip()


def _facts(metadata: ArtifactMetadata) -> list[tuple[str, str]]:
    """Returns what it is, as rows of a table."""
    distilled = metadata.training.get("distill", {})
    rows = [
        ("network", f"{metadata.encoder}, {metadata.size} × {metadata.size} pixels"),
        ("head", metadata.mode),
        ("made by", f"clfew {metadata.clfew_version}"),
    ]
    if metadata.mode == DISTILLED:
        rows[1] = ("learned from", "the answers of another classifier, its teacher")
        rows.append(("initial weights", _init_words(distilled.get("init"))))
    elif metadata.parts:
        for part in metadata.parts:
            rows.append(("one of its networks", _origin_words(ArtifactMetadata(**part))))
    else:
        rows.append(("came from", _origin_words(metadata)))
    shares = metadata.training.get("finetune", {}).get("shares")
    if shares:
        by_share = sorted(zip(shares["share"], shares["classes"], strict=True), reverse=True)
        some = [f"{name} {100 * share:.0f} %" for share, name in by_share[:MOST_WORST]]
        rows.append(("expected class shares", f"{', '.join(some)} ({shares['origin']})"))
    return [(name, value) for name, value in rows if value]


def _origin_words(metadata: ArtifactMetadata) -> str:
    """Returns the weights that a network started from and its pretraining, in words."""
    pretraining = metadata.training.get("pretrain", {})
    init = pretraining.get("init") or metadata.training.get("init", {}).get("source")
    images = metadata.data.get("pretrain", {}).get("images")
    count = f" on {images:,} images" if isinstance(images, int) else ""
    learned = f"{metadata.method} without labels{count}" if metadata.method else "no pretraining"
    return ", ".join(filter(None, (_init_words(init), learned)))


def _init_words(init: Any) -> str:
    """Returns the weights that a network started from, of a file its name and not where it lies; "" if
    they are not known by name, as those that a student's `auto` found."""
    return Path(init).name if isinstance(init, str) and init != "auto" else ""


def _labels(metadata: ArtifactMetadata, result: dict[str, Any]) -> str:
    """Returns how many labels were learned and how they were chosen, in words."""
    learned = metadata.data["finetune"]
    origins = learned.get("label_origins") or result.get("label_origins") or {}
    few = f"It learned from {plural(learned['labels'], 'label')}"
    return f"{few}{_origins(origins)}."


def _origins(origins: dict[str, int]) -> str:
    """Returns in words how labels came about, to be read after their number."""
    if len(origins) == 1:
        return f", {next(iter(origins))}"
    return "".join(f"{', ' if n else ': '}{c:,} {o}" for n, (o, c) in enumerate(origins.items()))


def _test(metadata: ArtifactMetadata, result: dict[str, Any], report: dict[str, Any]) -> str:
    """Returns how it was tested and with what result, in words."""
    if not report and "mean" in result:  # Of a version before there was a card.
        low, high = result["ci95"]
        return (
            f"It was right on {percent(result['mean'])} of {result['test_images']:,} test images (95 % "
            f"interval {percent(low)} to {percent(high)}). `clfew eval` tells more."
        )
    if not report:
        return "No test is kept with it: `clfew eval` tests it on labelled images."
    low, high = report["ci95"]
    how = _origins(metadata.data["finetune"].get("test_origins") or {}).lstrip(",: ")
    words = (
        f"It was right on {percent(report['accuracy'])} of {report['n']:,} test images, of which it had "
        f"seen no label (95 % interval {percent(low)} to {percent(high)}). "
        f"{f'How they came about: {how}.' if how else HELD_OUT} "
        f"Balanced accuracy {percent(report['balanced_accuracy'])}, macro F1 "
        f"{percent(report['macro_f1'])}, expected calibration error {percent(report['ece'])}."
    )
    if len(result.get("draws", [])) > 1:
        low, high = result["ci95"]
        words += (
            f" Over {len(result['draws'])} samples of as many labels, of which this classifier has the "
            f"first, the mean is {percent(result['mean'])} ({percent(low)} to {percent(high)})."
        )
    return words


def _beside(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the classifier beside its baselines, the header first; nothing where there are none."""
    if not result.get("baselines") or "means" not in result:
        return []
    return beside(result["means"], result["baselines"])


def _fails(report: dict[str, Any], worst: list[dict[str, Any]]) -> str:
    if not report:
        return "That is not known."
    untested = [row["class"] for row in report["per_class"] if not row["n"]]
    names = ", ".join(untested[:MOST_WORST]) + (", …" if len(untested) > MOST_WORST else "")
    none = f" Of {names} there is no test image." if untested else ""
    if report["accuracy"] == 1:
        return f"It made no mistake on the {report['n']:,} test images; more would show some.{none}"
    few = [row for row in worst if row["n"] < FEW]
    words = "The classes of which the smallest part was found, and what was taken for what most often."
    if few:
        low, high = wilson_interval(round(few[0]["recall"] * few[0]["n"]), few[0]["n"])
        words += (
            f" Some have few test images: of {few[0]['class']} {plural(few[0]['n'], 'image')}, so that "
            f"between {percent(low, 0)} and {percent(high, 0)} may be found."
        )
    return words + none


HELD_OUT = "They are the test split of the images, or were drawn at random for each class."

FEW = 20
"""A class with fewer test images than this is said to have few."""
