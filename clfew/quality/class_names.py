"""Finds names of classes that look like mistakes: two spellings of one name, or the name of no class."""

import re
import unicodedata
from collections import defaultdict

FROM_LETTERS, REPLACED_FROM = 6, 8
"""Names of at least so many letters are one of another's spelling if one letter is missing or two have
changed places; of so many, if one is another letter: horse and house are two things."""

_PLACEHOLDER = re.compile(
    r"(new|untitled) ?folder( ?\(?\d+\)?)?|misc|tmp|temp|unsorted|todo|undefined|nan|none|null|n/?a"
    r"|\?+|-+"
)


def odd_names(names: list[str]) -> list[str]:
    """Returns in words which names of classes look like mistakes."""
    said = [f"'{name}' begins or ends with a space" for name in names if name != name.strip()]
    said += [
        f"'{name}' holds signs that cannot be seen"
        for name in names
        if any(not c.isprintable() for c in name)
    ]
    said += [
        f"'{name}' is hardly the name of a class"
        for name in names
        if _PLACEHOLDER.fullmatch(name.strip().lower())
    ]
    return said + [
        f"'{first}' and '{second}' differ in {how}" for first, second, how in similar_names(names)
    ]


def similar_names(names: list[str]) -> list[tuple[str, str, str]]:
    """Returns the pairs of names that may mean one class, and in what they differ."""
    plain: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        plain[_plain(name)].append(name)
    found = [
        (first, second, _difference(first, second))
        for same in plain.values()
        for i, first in enumerate(same)
        for second in same[i + 1 :]
    ]
    for first, second in _near(sorted(plain)):
        is_ending = second == first + "s" or first == second + "s"
        how = "an s at the end" if is_ending else "one letter"
        found.append((plain[first][0], plain[second][0], how))
    return found


def _plain(name: str) -> str:
    """Returns a name without capitals, accents, spaces and signs between words. Signs beside a digit
    stay: -1 is not 1."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    # Accents of Latin, Greek and Cyrillic letters; elsewhere such marks make other letters.
    bare = re.sub(r"([a-z\u0370-\u052f])[\u0300-\u036f]+", r"\1", letters)
    return re.sub(r"(?<!\d)[-.](?!\d)|[\s_]", "", bare) or name


def _difference(first: str, second: str) -> str:
    if first.casefold() == second.casefold():
        return "capitals alone"
    if "".join(first.split()) == "".join(second.split()):
        return "spaces alone"
    return "capitals, accents, spaces or signs alone"


def _near(names: list[str]) -> list[tuple[str, str]]:
    """Returns the pairs of names, in order, that are one of another's spelling. Of names one edit apart,
    the same is left when a letter of each is taken away, or one is what is left of the other."""
    shorter: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for left in {name, *(name[:i] + name[i + 1 :] for i in range(len(name)))}:
            shorter[left].add(name)
    pairs = {
        (first, second)
        for those in shorter.values()
        if len(those) > 1
        for first in those
        for second in those
        if first < second
    }
    return sorted(pair for pair in pairs if _is_misspelled(*pair))


def _is_misspelled(first: str, second: str) -> bool:
    """Returns whether two names that are one or two edits apart are spellings of one."""
    if re.sub(r"\d", "", first) == re.sub(r"\d", "", second):
        return False  # Numbered classes.
    if first == "a" + second or second == "a" + first:
        return False  # Typical and atypical.
    if first[:-1] == second[:-1] and len(first) == len(second):
        return False  # Variety A and variety B.
    short, long = sorted((first, second), key=len)
    if long == short + "s" and len(short) >= 3:
        return True
    if len(long) == len(short) + 1:
        kept = [long[:i] + long[i + 1 :] for i in range(len(long))]
        return len(short) >= FROM_LETTERS and short in kept and not _is_number_added(short, long)
    places = [i for i in range(len(short)) if short[i] != long[i]] if len(short) == len(long) else []
    if len(places) == 1:
        return len(short) >= REPLACED_FROM and not (first + second)[places[0]].isdigit()
    is_swapped = len(places) == 2 and places[1] == places[0] + 1
    i = places[0] if is_swapped else 0
    return is_swapped and len(short) >= FROM_LETTERS and short[i : i + 2] == long[i : i + 2][::-1]


def _is_number_added(short: str, long: str) -> bool:
    return long[-1].isdigit() and long[:-1] == short
