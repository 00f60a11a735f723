"""The model card: real numbers only, in the form that the Hugging Face hub reads."""

import json
from dataclasses import asdict, replace

import pytest
from huggingface_hub import ModelCard

from clfew.models.metadata import ArtifactMetadata
from clfew.report.card import markdown, model_card, write_card

CLASSES = ["fox", "a|b", "<b>*x*</b>", "new\nline"]
METADATA = ArtifactMetadata(
    "classifier",
    "resnet18",
    224,
    256,
    [0.5] * 3,
    [0.2] * 3,
    512,
    "simclr",
    True,
    "0.1.0",
    classes=CLASSES,
    mode="linear",
    training={"pretrain": {"init": "/home/me/secret/weights.pth"}, "finetune": {}},
    data={"pretrain": {"images": 1234}, "finetune": {"source": "/home/me/secret/photos", "labels": 12}},
)


def result(**changes):
    row = {"precision": 0.5, "recall": 0.25, "n": 8}
    report = {
        "accuracy": 0.75,
        "ci95": [0.7, 0.8],
        "n": 200,
        "balanced_accuracy": 0.6,
        "macro_f1": 0.55,
        "ece": 0.031,
        "per_class": [{"class": CLASSES[0], **row}, {"class": CLASSES[1], **row, "recall": None}],
        "most_confused": [{"true": "a|b", "predicted": "fox", "count": 7}],
    }
    return {"test_report": report | changes, "label_origins": {"random": 4, "chosen (herding)": 8}}


def test_the_hub_reads_it(tmp_path):
    run = tmp_path / "finetune-1"
    run.mkdir()
    assert write_card(run, METADATA, result())
    card = ModelCard.load(run / "README.md")
    assert card.data.library_name == "clfew" and card.data.pipeline_tag == "image-classification"
    found = {(each.metric_name, each.metric_value) for each in card.data.eval_results}
    assert found == {("accuracy", 0.75), ("balanced", 0.6), ("macro F1", 0.55)}
    assert {each.dataset_name for each in card.data.eval_results} == {"photos"}
    assert card.data.eval_results[0].dataset_split == "test"


def test_it_says_what_it_is_how_it_was_tested_and_where_it_fails(tmp_path):
    text = model_card(tmp_path, METADATA, result())
    for words in (
        "It tells 4 classes of images apart: fox, a\\|b, ",
        "It learned from 12 labels: 4 random, 8 chosen (herding).",
        "right on 75.0 % of 200 test images, of which it had seen no label",
        "(95 % interval 70.0 % to 80.0 %)",
        "expected calibration error 3.1 %",
        "| fox | 8 | 25.0 % | 50.0 % |",
        "- 7 × a\\|b was taken for fox",
        "Some have few test images: of fox 8 images",
        "| came from | weights.pth, simclr without labels on 1,234 images |",
    ):
        assert words in text, words
    assert "secret" not in text  # It may be published.
    assert "<b>" not in text and "new\nline" not in text


def test_without_a_test_it_says_so(tmp_path):
    text = model_card(tmp_path, METADATA, {})
    assert "No test is kept with it" in text and "That is not known." in text
    assert "%" not in text
    assert "model-index" not in text


def test_without_a_mistake_it_claims_nothing_more(tmp_path):
    perfect = [{"class": "fox", "precision": 1.0, "recall": 1.0, "n": 9}]
    perfect.append({"class": "a|b", "precision": None, "recall": None, "n": 0})
    report = {"per_class": perfect, "most_confused": [], "n": 9, "accuracy": 1.0}
    text = model_card(tmp_path, METADATA, result(**report))
    assert "It made no mistake on the 9 test images; more would show some." in text
    assert "Of a\\|b there is no test image." in text


def test_a_mean_over_label_samples_stands_beside_the_one_that_is_kept(tmp_path):
    more = {"draws": [{}, {}, {}], "mean": 0.71, "ci95": [0.6, 0.8]}
    text = model_card(tmp_path, METADATA, result() | more)
    assert "Over 3 samples of as many labels, of which this classifier has the first" in text
    assert "the mean is 71.0 % (60.0 % to 80.0 %)" in text


@pytest.mark.parametrize("name", ["hf:user/pets", "hf:./pets", "/home/me/secret/pets.csv", "pets"])
def test_the_images_are_named_without_folders_of_the_machine(tmp_path, name):
    data = {"finetune": {"source": name, "labels": 3}}
    header = model_card(tmp_path, replace(METADATA, data=data), result()).split("---")[1]
    wanted = {"hf:user/pets": "user/pets", "/home/me/secret/pets.csv": "pets.csv"}.get(name, "pets")
    assert f"name: {wanted}\n" in header and "secret" not in header


def test_a_card_that_was_changed_is_left_alone(tmp_path):
    assert write_card(tmp_path, METADATA, result())
    first = (tmp_path / "README.md").read_text()
    assert write_card(tmp_path, METADATA, {})  # Its own is written anew.
    assert (tmp_path / "README.md").read_text() != first
    (tmp_path / "README.md").write_text(first.replace("fox", "wolf"))
    assert not write_card(tmp_path, METADATA, result())
    assert "wolf" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_bytes(b"\xff\xfe mine")
    assert not write_card(tmp_path, METADATA, result())
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert not write_card(tmp_path, METADATA, result())


def test_the_file_that_was_exported_is_named(tmp_path):
    exported = {"file": "classifier.onnx", "words": "Tried on 200 images.", "program": True}
    text = model_card(tmp_path, METADATA, result(), exported)
    assert "python predict_onnx.py classifier.onnx image.jpg" in text and "Tried on 200 images." in text
    text = model_card(tmp_path, METADATA, result(), exported | {"program": False})
    assert "predict_onnx.py" not in text and "`classifier.onnx` runs in any ONNX runtime" in text


def test_a_run_of_a_version_without_cards_has_its_mean(tmp_path):
    before = {"mean": 0.8, "ci95": [0.7, 0.9], "test_images": 50, "draws": [{}]}
    text = model_card(tmp_path, METADATA, before)
    assert "It was right on 80.0 % of 50 test images (95 % interval 70.0 % to 90.0 %)." in text


def test_a_student_has_its_own_weights_and_several_networks_theirs(tmp_path):
    training = METADATA.training | {"distill": {"init": "scratch"}}
    text = model_card(tmp_path, replace(METADATA, mode="distilled", training=training), result())
    assert "| initial weights | scratch |" in text and "1,234" not in text and "its teacher" in text
    training["distill"]["init"] = "auto"
    text = model_card(tmp_path, replace(METADATA, mode="distilled", training=training), result())
    assert "initial weights" not in text and "auto" not in text
    parts = [
        asdict(replace(METADATA, kind="encoder", classes=[], mode="", method=name))
        for name in ("simclr", "byol")
    ]
    text = model_card(tmp_path, replace(METADATA, parts=parts), result())
    assert "weights.pth, simclr without labels" in text and "weights.pth, byol without labels" in text


def test_metadata_of_other_types_is_no_traceback(tmp_path):
    odd = {"pretrain": {"init": 3}, "finetune": {}, "distill": {"init": None}}
    data = {"pretrain": {"images": "many"}, "finetune": {"source": "pets", "labels": 3}}
    assert "came from" in model_card(tmp_path, replace(METADATA, training=odd, data=data), {})


def test_text_has_no_marks():
    assert markdown("a_b [c](d) `e` <f> &lt;") == "a\\_b \\[c\\](d) \\`e\\` \\<f\\> &amp;lt;"
    assert json.dumps(markdown("x\ny")).count("\\n") <= 1
