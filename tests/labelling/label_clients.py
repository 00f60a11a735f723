"""A browser that labels, and the command that serves it."""

import http.client
import json
import os
import re
import secrets
import signal
import threading
import time

from commands import Result

PID = """
import os
open({!r}, "w").write(str(os.getpid()))
"""


class Served:
    """A `clfew label` that runs in a thread of the test: see `commands.Command`."""

    def __init__(self, clfew, cwd, *options, faults=""):
        self.file, self.result = cwd / "pid", None
        self.file.unlink(missing_ok=True)
        self._errors = clfew.home / "stderr"
        self._errors.unlink(missing_ok=True)
        arguments = ("label", *options, "--no-browser")

        def run():
            self.result = clfew(*arguments, cwd=cwd, faults=PID.format(str(self.file)) + faults)

        self._thread = threading.Thread(target=run)
        self._thread.start()
        self.address = self._wait_for_address()

    def said(self):
        return self._errors.read_text() if self._errors.exists() else ""

    def _wait_for_address(self):
        end = time.monotonic() + 60
        while not (found := re.search(r"^page +(http://\S+)$", self.said(), re.MULTILINE)):
            assert self._thread.is_alive() and time.monotonic() < end, self.said()
            time.sleep(0.01)
        return found[1]

    def send(self, number):
        os.kill(int(self.file.read_text()), number)

    def kill(self):
        self.send(signal.SIGKILL)
        assert self.wait().rc == -signal.SIGKILL, self.said()

    def wait(self):
        self._thread.join(60)
        assert not self._thread.is_alive(), "it does not end"
        return self.result


class Forked:
    """A session that a process of `label_nursery.py` serves. It ends by a signal."""

    def __init__(self, nursery, folder):
        self._nursery, self.result = nursery, None
        nursery.stdin.write(f"{folder}\n")
        nursery.stdin.flush()
        self._process, self.address = nursery.stdout.readline().split()

    def send(self, number):
        os.kill(int(self._process), number)

    def wait(self):
        self.result = self.result or Result(int(self._nursery.stdout.readline()), "", "")
        return self.result


class Client:
    """A browser that has opened the address."""

    def __init__(self, address):
        self.host, target = re.fullmatch(r"http://([^/]+)(/.*)", address).groups()
        self._connection = http.client.HTTPConnection(self.host, timeout=30)
        self._connection.request("GET", target)
        answer = self._connection.getresponse()
        answer.read()
        self._cookie = answer.headers["Set-Cookie"].partition(";")[0]

    def _ask(self, method, target, body=None):
        headers = {"Cookie": self._cookie}
        if body is not None:
            headers |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        self._connection.request(method, target, body, headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def state(self):
        status, state = self._ask("GET", "/state")
        assert status == 200, state
        return state

    def send(self, request):
        """Sends a decision; returns the status and the answer. Raises OSError or HTTPException if none
        comes."""
        return self._ask("POST", "/do", json.dumps(request))

    def do(self, do, **more):
        """Sends a decision that must be done; returns what is shown then."""
        status, answer = self.send({"do": do, "request": secrets.token_hex(8), **more})
        assert status == 200, answer
        return answer["state"]

    def label(self, count, names=("deer", "fox")):
        """Labels so many images in turn, but for those that are asked once more."""
        for number in range(count):
            queue = self.state()["queue"]
            image = next(each["image"] for each in queue if each["again"] is None)
            state = self.do("label", image=image, name=names[number % len(names)])
        return state

    def close(self):
        self._connection.close()


def events(project, run="runs/label-1"):
    """Returns what the log of a run has."""
    return [json.loads(line) for line in (project / run / "decisions.jsonl").read_text().splitlines()]
