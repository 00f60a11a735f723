"""Serves sessions on made-up codes, each in a fork of this process, which has imported torch.

Reads a folder a line; prints the process and the address of its session, and its exit code when it ends.
"""

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from made_board import Made

from clfew.labelling import session as module
from clfew.labelling.server import LabelServer, Refused


def no_picture(number, size):
    raise Refused(410, "There are no images.")


def serve(made, folder):
    made.folder = folder
    session = made.start()
    if not session.events:
        session.append({"do": "test", "images": made.tests, "how": "random"})
        session.ask(40)
    server = LabelServer("<script nonce=__NONCE__></script>", session.do, session.state, no_picture)
    server.start()
    threading.Thread(target=session.work, daemon=True).start()
    print(os.getpid(), server.address, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    module.WAIT_SECONDS = 0.0  # A page need not wait for the classifier.
    with tempfile.TemporaryDirectory() as place:
        made = Made(Path(place), (40, 40))
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                try:
                    serve(made, Path(line[:-1]))
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
