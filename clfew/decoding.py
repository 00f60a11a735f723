"""The pixel store of a source, as commands open it."""

from clfew import console
from clfew.data.sources import Source
from clfew.data.store import Store, open_store


def stored(source: Source, side: int) -> Store:
    """The pixel store of a source, with progress while it is built and a word on bad images."""
    with console.progress_bar("decoding") as update:
        store = open_store(source, side, update)
    if store.bad:
        name, reason = store.bad[0]
        console.say(
            f"skipped    {len(store.bad)} of {len(source)} images, which cannot be used "
            f"(first {console.printable(name)}: {reason}); bad_images.csv in the run lists them"
        )
    if source.ignored:
        console.say(f"passed over {source.ignored} files that are no images")
    return store
