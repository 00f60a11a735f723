"""The scripts in examples/ run, print sensible results and use the public API only."""

import ast
import runpy
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from marks import rest_is_slow

import clfew
from clfew.methods.base import METHODS
from clfew.models import backbones

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {"encoder": "resnet8-w8", "size": 16}


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
    """Runs a test in an empty folder, and afterwards removes what the examples registered."""
    monkeypatch.chdir(tmp_path)
    with patch.dict(METHODS), patch.dict(backbones._REGISTERED):
        yield


@pytest.fixture
def folder(images) -> str:
    """Class folders that hardly any classifier confuses."""
    return str(images(Path("images"), each=40))


def load(name: str, **options: dict) -> dict:
    """The example's names; options: for functions of clfew, keywords that replace the example's own."""
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))

    def smaller(function, changes):
        return lambda *args, **keywords: function(*args, **{**keywords, **changes})

    names = example["main"].__globals__
    names.update({name: smaller(names[name], changes) for name, changes in options.items()})
    return example


def imports(name: str) -> set[str]:
    """The modules of clfew that an example imports."""
    modules = set()
    for node in ast.walk(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    return {module for module in modules if module.split(".")[0] == "clfew"}


def test_python_api(folder, capsys):
    example = load(
        "python_api",
        pretrain=TINY,
        compare={**TINY, "draws": 1, "methods": "denoising"},
    )
    example["main"](folder, f"{folder}/ring/000.png", minutes=0.01)
    lines = capsys.readouterr().out.splitlines()
    found = {}
    for line in lines:
        found.setdefault(line[:10].strip(), []).append(line[11:])
    assert list(found) == [
        "check",
        "select",
        "finetune",
        "evaluate",
        "predict",
        "embed",
        "distill",
        "compare",
        "export",
    ]
    assert Path(found["check"][-1].split()[-1]).is_file() and found["check"][-1].startswith("120 images")
    assert 0.3 < float(found["finetune"][0].split()[1]) <= 1
    assert Path(found["evaluate"][0].split()[-1]).is_file()
    path, top = found["predict"][0].split(" ", 1)
    (_, first), (_, second) = ast.literal_eval(top)
    assert path.endswith("ring/000.png") and 1 >= first >= second >= 0
    assert found["embed"][0].startswith("120 × ") and Path(found["embed"][0].split()[-1]).is_file()
    assert Path(found["distill"][0].split()[-1], "config.json").is_file()
    methods = {row.split(",")[0] for row in found["compare"][:-1]}
    assert methods == {"raw-pixels", "random", "scratch", "denoising"}
    assert Path(found["compare"][-1]).is_file()
    assert Path(found["export"][0].split(",")[0]).is_file()


def imports_from_clfew(name: str) -> set[str]:
    """The names that an example imports from clfew itself."""
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "clfew"]
    return {alias.name for node in nodes for alias in node.names}


def test_python_api_calls_every_command():
    others = {"__version__", "register_encoder", "register_method"}
    assert imports_from_clfew("python_api") == set(clfew.__all__) - others


def test_custom_encoder(folder, capsys):
    load("custom_encoder")["main"](folder, minutes=0.01)
    line = capsys.readouterr().out.strip()
    assert line.startswith("accuracy ") and line.endswith("over 3 label samples")
    assert 0.3 < float(line.split()[1]) <= 1


@pytest.mark.slow
def test_custom_method(folder, capsys):
    options = {**TINY, "labels": "4/class", "draws": 1, "minutes": 0.01}
    load("custom_method", compare=options)["main"](folder)
    printed = capsys.readouterr().out
    assert "rotation" in printed and "simclr" in printed and "failed" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("size", rest_is_slow([32, 72]))
def test_read_artifact_predicts_what_clfew_predicts(images, capsys, size):
    """Both forms of the network: with the small first layer up to 64 pixels, and torchvision's own."""
    folder = str(images(Path("images"), each=12))
    encoder = clfew.pretrain(folder, encoder="resnet18", size=size, epochs=0.1, init="scratch", batch=8)
    classifier, _ = clfew.finetune(folder, labels="4/class", origin=str(encoder), mode="linear")
    artifact, image = str(classifier / "classifier.safetensors"), f"{folder}/ring/000.png"
    load("read_artifact")["main"](artifact, image)
    lines = capsys.readouterr().out.splitlines()
    assert "kind     classifier" in lines and f"size     {size}" in lines
    printed = {line.split()[1]: float(line.split()[0].rstrip("%")) / 100 for line in lines[-3:]}
    (prediction,) = clfew.predict([image], artifact, top=3, precision="fp32")
    predicted = dict(prediction.top)
    assert list(printed) == sorted(predicted)
    np.testing.assert_allclose(
        [printed[name] for name in printed], [predicted[name] for name in printed], atol=0.002
    )


@pytest.mark.parametrize("name", ["custom_encoder", "custom_method"])
def test_examples_import_the_public_modules_only(name):
    assert imports(name) <= {"clfew", "clfew.methods.base", "clfew.data.augment"}


def test_the_custom_method_is_short():
    assert len((EXAMPLES / "custom_method.py").read_text(encoding="utf-8").splitlines()) < 80
