"""`clfew label`: a page to label images in, and the classifier that comes of it."""

import contextlib
import os
import shlex
import sys
import threading
import time
import webbrowser
from collections import Counter
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from clfew import console
from clfew.commands.finetune import finetune_in, say_next
from clfew.commands.labelling import prepare_labelling, run_to_go_on, session_of
from clfew.commands.selecting import Prepared
from clfew.data.content import content_of
from clfew.data.label_lists import counts_of
from clfew.errors import Stopped, UserError
from clfew.labelling.labels_list import rows_of
from clfew.labelling.log import LOG, DecisionLog
from clfew.labelling.pictures import Pictures
from clfew.labelling.server import LabelServer, Refused
from clfew.labelling.session import Ended, Session
from clfew.labelling.state import SKIP, UNSURE
from clfew.runs.files import csv_text, digest_of, digest_of_text, write_json, write_text
from clfew.runs.folders import LABELS, command_line, from_here, new_run
from clfew.runs.locks import held
from clfew.selection.label_rows import cells_of
from clfew.settings import FinetuneSettings, LabelSettings, arguments_of
from clfew.signatures import function_of
from clfew.training.device import without_traces
from clfew.training.signals import StopRequest

_TICK, _LATER, _SEEN = 0.25, 2.0, 10.0
"""Seconds: between two looks at what has happened; after which a changed list is written; and in which
an open page asks what has happened."""


def run(settings: LabelSettings) -> tuple[Path, dict[str, Any]]:
    """Serves a page to label images in until the labels are finished there, then fine-tunes on them.
    Returns the run folder and what is in label.json.

    The folder has decisions.jsonl, every decision in its order, and labels.csv, a list of path, label,
    split, order and how. The last run of the same source, or that of `out`, goes on where it was. The
    result has `source`, `list`, `labels` (how many images to learn from have each class), `test` (paths
    of the test sample), `tested` (how many of them have a label), `unsure` and `skipped` (paths), `how`
    (how many labels came about in each way), and `finetune`, the result of `finetune` with its folder
    `run`. No file of the source is changed. Raises UserError; raises Stopped after a signal.
    """
    with contextlib.ExitStack() as stack:
        folder, settings = run_to_go_on(settings)
        if folder is not None:
            console.say(f"goes on    {from_here(folder)}, where it was")
            stack.enter_context(held(folder))
            log = stack.enter_context(contextlib.closing(DecisionLog(folder / LOG)))
            _check_list(folder, log)
            prepared, drawn = prepare_labelling(settings, log)
        else:
            prepared, drawn = prepare_labelling(settings, None)
            folder = _create(settings, prepared)
            stack.enter_context(held(folder))
            log = stack.enter_context(contextlib.closing(DecisionLog(folder / LOG)))
        try:
            session = session_of(settings, prepared, drawn, log)
            return folder, Labelling(settings, folder, prepared, session).serve()
        except Refused as refused:  # The log cannot be written.
            raise UserError(refused.sentence, refused.hint) from None


label = function_of(LabelSettings, without_traces(run))


def _create(settings: LabelSettings, prepared: Prepared) -> Path:
    """Makes a new run."""
    run = new_run("label", settings.out)
    config = {
        "command": "label",
        "command_line": command_line(),
        "source": prepared.source.spec,
        "group_by": prepared.group_by,
        "content": content_of(prepared.source, prepared.cache),
        "split_rule": prepared.source.rule,
        "label_digest": digest_of(Path(prepared.listed.file)) if prepared.listed else None,
        "arguments": arguments_of(replace(settings, source=prepared.source.spec)),
    }
    run.write_config(config)
    run.write_bad_images(prepared.cache.bad)
    return run.folder


def _check_list(folder: Path, log: DecisionLog) -> None:
    """Raises UserError if somebody has changed labels.csv, which would be written over."""
    file = folder / LABELS
    digests = {event.get("digest") for event in log.events if event["do"] == "list"}
    try:
        if not file.exists() or digest_of(file) in digests:
            return
    except OSError as error:
        raise UserError(
            f"{from_here(file)} cannot be read: {error.strerror}.", "move it away: it is written anew."
        ) from None
    raise UserError(
        f"{from_here(file)} has been changed since clfew wrote it.",
        f"to go on from the changed list: clfew label --labels {shlex.quote(str(from_here(file)))}; or "
        "move it away: it is written anew from the decisions.",
    )


@dataclass
class Labelling:
    """A run while its page is served."""

    settings: LabelSettings
    folder: Path
    prepared: Prepared
    session: Session
    _written: str = ""
    _version: int = -1
    _is_told: bool = False

    def _can_be_read(self, image: int) -> bool:
        """Returns whether an image is still there: `finetune` refuses a list that names others."""
        source, cache = self.prepared.source, self.prepared.cache
        place = int(np.searchsorted(cache.good, image))
        is_good = place < len(cache.good) and int(cache.good[place]) == image
        is_here = source.path_of is None or source.path_of(image).is_file()
        return is_good and is_here and source.identities[image] not in self.session.board.gone

    @property
    def file(self) -> Path:
        return self.folder / LABELS

    def serve(self) -> dict[str, Any]:
        """Serves the page until it is finished. Raises Stopped after a signal, UserError if fine-tuning
        fails; the labels are kept."""
        page = files("clfew.labelling").joinpath("page.html").read_text(encoding="utf-8")
        pictures = Pictures(self.prepared.source, self.session.gone)
        server = self._server(page, pictures)
        worker = threading.Thread(target=self.session.work, daemon=True)
        try:
            self.session.append({"do": "served", "port": server.port})
            self._write_list()
            server.start()
            worker.start()
            with StopRequest() as stop:
                self._say_address(server)
                self._wait(stop)
                result = self._write_list(is_last=True)
            if stop.signal:
                raise Stopped(stop.signal, self._again())
            return self._finish(result)
        finally:
            self._wait_until_seen()
            self.session.stop()
            server.stop()
            if worker.is_alive():
                worker.join(10)

    def _server(self, page: str, pictures: Pictures) -> LabelServer:
        """Returns the server, on the port of the last time if that is free: then a page that is still
        open can save what it has not saved yet."""
        before = [event["port"] for event in self.session.events if event["do"] == "served"]
        if self.settings.port is None and before:
            with contextlib.suppress(UserError):
                return LabelServer(page, self.session.do, self.session.state, pictures, before[-1])
        return LabelServer(page, self.session.do, self.session.state, pictures, self.settings.port)

    def _say_address(self, server: LabelServer) -> None:
        console.say(f"list       {from_here(self.file)}, written as you label")
        console.say(f"page       {server.address}")
        console.say("           open it in a browser on this machine; Ctrl-C stops, and nothing is lost")
        has_screen = sys.platform in ("darwin", "win32") or any(
            os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
        )
        if self.settings.browser and has_screen:  # Else it may be one in this terminal.
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()

    def _wait(self, stop: StopRequest) -> None:
        """Waits for the end, and writes the list a while after something has changed."""
        since = time.monotonic()
        while self.session.phase == "labelling" and not stop.signal:
            time.sleep(_TICK)
            if self.session.version == self._version:
                since = time.monotonic()
            elif time.monotonic() - since >= _LATER:
                self._write_list()

    def _write_list(self, is_last: bool = False) -> dict[str, Any]:
        """Writes labels.csv and label.json; returns the content of the latter. Raises UserError if they
        cannot be written at the end."""
        source, session = self.prepared.source, self.session
        with session.lock:
            version = session.version
            rows, lost = rows_of(source, session.decided, self._can_be_read)
            result = self._result(rows)
        is_grouped = self.prepared.group_by is not None or any(row.group for row in rows)
        text = csv_text(*cells_of(source, rows, is_grouped))
        digest = digest_of_text(text)
        if digest == self._written:
            self._version = version
            return result
        try:
            session.append({"do": "list", "digest": digest})
            write_text(self.file, text)
            write_json(self.folder / "label.json", result)
        except (Refused, UserError) as error:  # The decisions are in the log all the same.
            if is_last:
                raise
            if not self._is_told:
                console.say(f"note       {self.file.name} could not be written: {error}")
            self._is_told = True
            return result
        self._written, self._version, self._is_told = digest, version, False
        if lost:
            images = console.plural(lost, "labelled image")
            console.say(f"note       {images} cannot be found any more, and the list is without them")
        return result

    def _result(self, rows: list[Any]) -> dict[str, Any]:
        """Returns the content of label.json."""
        decided, source = self.session.decided, self.prepared.source
        tested = {self.session.board.numbers.get(name) for name in decided.tests}
        learned = Counter(row.label for row in rows if row.label and row.index not in tested)
        return {
            "source": source.spec,
            "list": str(self.file),
            "labels": dict(sorted(learned.items())),
            "test": [source.identities[row.index] for row in rows if row.index in tested],
            "tested": sum(decided.label(name) is not None for name in decided.tests),
            "unsure": decided.of_kind(UNSURE),
            "skipped": decided.of_kind(SKIP),
            "how": counts_of([row.how for row in rows if row.label]),
        }

    def _finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Fine-tunes on the labels."""
        settings, file = self.settings, from_here(self.file)
        console.say(f"labels     {sum(result['labels'].values()):,} to learn from, {file}")
        finetuning = FinetuneSettings(
            self.prepared.source.spec,
            labels=str(self.file),
            origin=[settings.origin] if settings.origin else None,
            init=settings.init,
            bands=settings.bands,
            group_by=self.prepared.group_by,
            seed=settings.seed,
            device=settings.device,
            precision=settings.precision,
            threads=settings.threads,
        )
        again = f"clfew finetune --labels {shlex.quote(str(file))}"
        try:
            folder, fitted = finetune_in(finetuning)
        except UserError as error:
            lines = [error.message, f"hint: {error.hint}"]
            self.session.end(Ended("failed", lines, again, str(file)))
            raise
        self.session.end(Ended("done", _lines(folder, fitted), "clfew predict image.jpg", str(file)))
        result = {**result, "finetune": {"run": str(folder), **fitted}}
        write_json(self.folder / "label.json", result)
        say_next(folder, fitted)
        return result

    def _again(self) -> str:
        """Returns the command that goes on with this run."""
        folder = from_here(self.folder)
        is_found = run_to_go_on(LabelSettings())[0] == folder
        return "clfew label" if is_found else f"clfew label --out {shlex.quote(str(folder))}"

    def _wait_until_seen(self) -> None:
        """Waits until an open page has shown how it ended."""
        ended, session = time.monotonic(), self.session
        is_open = ended - session.seen < _SEEN
        while session.ended and is_open and session.seen < ended and time.monotonic() < ended + _SEEN:
            time.sleep(_TICK)


def _lines(folder: Path, fitted: dict[str, Any]) -> list[str]:
    """Returns what came of fine-tuning, for the page."""
    if "mean" not in fitted:
        return [f"The classifier is in {from_here(folder)}. It was tested on no image."]
    low, high = (f"{100 * end:.1f}" for end in fitted["ci95"])
    return [
        f"The classifier is right on {100 * fitted['mean']:.1f} % of {fitted['test_images']:,} test "
        f"images (95 % interval {low} to {high} %).",
        f"It is in {from_here(folder)}.",
    ]
