"""labels.csv: what was decided, as a list that `finetune`, `select` and other programs read."""

from collections.abc import Callable

from clfew.data.label_lists import LabelRow
from clfew.data.source import Source
from clfew.labelling.state import State
from clfew.selection.label_rows import numbered

ON_PAGE = "chosen (page)"
"""How an image was chosen that was labelled in a page of a class."""


def rows_of(
    source: Source, state: State, is_there: Callable[[int], bool] = lambda image: True
) -> tuple[list[LabelRow], int]:
    """Returns the rows of the list, and how many images with a label are no longer in the source: they
    are left out, as a list may name what is there only. First come the rows that it began with, then
    images that were labelled or left without a label, and last the test sample. is_there: whether an
    image of the source can be read."""
    number_of = {name: i for i, name in enumerate(source.identities) if is_there(i)}

    def label_of(name: str) -> str:
        label = state.label(name)
        return "" if label is None else state.name_of(label)

    rows = {
        name: LabelRow(number_of[name], label_of(name), split, order, how, group)
        for name, _, split, order, how, group in state.listed
        if name in number_of
    }
    learned = [name for name in state.current if name not in state.tests]
    hows = dict.fromkeys(learned, ON_PAGE) | state.asked
    new = [*((name, "train", hows[name]) for name in learned)]
    new += [(name, "test", how) for name, how in state.tests.items()]
    more = [
        LabelRow(number_of[name], label_of(name), split, None, how, "")
        for name, split, how in new
        if name in number_of and name not in rows
    ]
    lost = sum(made.label is not None and n not in number_of for n, made in state.current.items())
    return numbered(list(rows.values()), more), lost
