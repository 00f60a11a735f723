"""Watches a process from its first line, as its `sitecustomize`, and all processes that it starts.

Every use of a network is refused. Each one, and each pickle that is written or read, is logged in the
file that CLFEW_WATCH names: the process could catch the refusal, and then it would go unnoticed.
"""

import os
import pickle
import sys

NETWORK = {
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname",
    "socket.getnameinfo", "socket.sendmsg", "socket.sendto", "urllib.Request", "http.client.connect",
    "ftplib.connect", "smtplib.connect",
}  # fmt: skip


def note(what: str) -> None:
    caller = sys._getframe(2)
    with open(os.environ["CLFEW_WATCH"], "a") as log:
        log.write(f"{what} in {caller.f_code.co_filename}:{caller.f_lineno}\n")


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in NETWORK:
        note(f"network: {event}{arguments[1:]!r}")
        raise OSError(f"{event}: the network is out of bounds here")
    if event == "pickle.find_class":
        note(f"pickle: find_class{arguments!r}")


def noting_call(module: object, name: str) -> None:
    original = getattr(module, name)

    def call(*arguments: object, **options: object) -> object:
        note(f"pickle: {name} {options.get('weights_only', '')}")
        return original(*arguments, **options)

    setattr(module, name, call)


def noting_class(name: str) -> None:
    original = getattr(pickle, name)

    class Noting(original):  # type: ignore[misc]
        def __init__(self, *arguments: object, **options: object) -> None:
            note(f"pickle: {name}")
            super().__init__(*arguments, **options)

    setattr(pickle, name, Noting)


if "CLFEW_WATCH" in os.environ:
    for function in ("dump", "dumps", "load", "loads"):
        noting_call(pickle, function)
    for kind in ("Pickler", "Unpickler", "_Pickler", "_Unpickler"):
        noting_class(kind)
    sys.addaudithook(watch)
