"""How a session of labelling begins: with the labels so far, a test sample, and the first images to
ask."""

from collections.abc import Iterable

from clfew.data.label_lists import LISTED, LabelRow
from clfew.data.randomness import identity_order
from clfew.data.source import Source
from clfew.labelling.session import Session
from clfew.labelling.state import NONE_NAME
from clfew.labelling.upcoming import FIRST


def begin(
    session: Session, source: Source, classes: Iterable[str], rows: list[LabelRow], tests: list[LabelRow]
) -> None:
    """Writes the first events of a run, as far as a killed process has not written them: classes, the
    labels so far, the test sample, and images to label. rows: of the list so far. tests: of the test
    sample, of that list or drawn."""
    done = {event["do"] for event in session.events}
    listed = {row.label for row in rows if row.label and "listed" not in done}
    # Not once more what has been renamed or deleted since. Two classes of a list may differ in nothing
    # but the case of their letters.
    made = {event["name"] for event in session.events if "name" in event} | {NONE_NAME}
    for name in dict.fromkeys([*classes, *sorted(listed)]):
        if name not in made:
            session.append({"do": "class", "class": session.decided.next_number(), "name": name})
    if rows and "listed" not in done:
        session.append({"do": "listed", "rows": [_cells(source, row) for row in rows]})
    if tests and "test" not in done:
        # Of a list, in an order of its own: the first of them have to be like the others.
        names, hows = [source.identities[row.index] for row in tests], {row.how for row in tests}
        names = [names[i] for i in identity_order(0, names)]
        how = hows.pop() if len(hows) == 1 else LISTED
        session.append({"do": "test", "images": names, "how": how})
    tested, asked = {row.index for row in tests}, session.decided.asked
    current = session.decided.current
    open_rows = [row for row in rows if not row.label and row.index not in tested]
    waiting = [row for row in open_rows if source.identities[row.index] not in {*asked, *current}]
    for how in dict.fromkeys(row.how for row in waiting):
        names = [source.identities[row.index] for row in waiting if row.how == how]
        session.append({"do": "asked", "images": names, "how": how})
    if len(session.decided.asked) < FIRST:
        session.ask(FIRST - len(session.decided.asked))


def _cells(source: Source, row: LabelRow) -> list[str | int | None]:
    return [source.identities[row.index], row.label, row.split, row.order, row.how, row.group]
