"""Opens sources of images: a folder, a CSV, or a data set read through Hugging Face `datasets`.

A source lists its images without decoding them. It has labels and splits if the data has them;
pretraining does not use the labels.
"""

import os
from dataclasses import replace
from pathlib import Path

from clfew import console
from clfew.data.csv_source import open_csv
from clfew.data.folder_source import open_folder
from clfew.data.lists import is_list, parse
from clfew.data.source import RULE, Source
from clfew.errors import UserError


def say_source(source: Source) -> None:
    """Prints how a source was understood and what is left out."""
    if summary := source.summary():
        console.say(f"read as    {summary}")


def name_of(spec: str) -> str:
    """Returns the name of a source without the folders of the machine that it lies on."""
    is_of_hub = spec.startswith("hf:") and spec[3:4] not in ("", ".", "/", "~")
    return spec.removeprefix("hf:") if is_of_hub else Path(spec).name


def open_source(spec: str, rule: int = RULE) -> Source:
    """Opens the source that a user named: a folder, a list (see `lists.parse`), or hf:NAME. rule: see
    `source.RULE`.

    Raises UserError if nothing has that name or there is no image in it.
    """
    if spec.startswith("hf:"):
        from clfew.data.huggingface import open_dataset

        return replace(open_dataset(spec, rule), rule=rule)
    if is_list(spec) and parse(os.path.expanduser(spec)).file.is_file():
        return replace(open_csv(os.path.expanduser(spec)), rule=rule)
    path = Path(os.path.expanduser(spec))  # pathlib raises for the ~ of an unknown user.
    if path.is_dir():
        return open_folder(path, rule)
    if path.is_file():
        raise UserError(
            f"{spec} is a file, but a folder of images is needed.",
            "name a folder, a list such as photos.csv with the columns path and label, or hf:NAME.",
        )
    raise UserError(f"There is no folder or file {spec}.", "check the spelling, or give the full path.")
