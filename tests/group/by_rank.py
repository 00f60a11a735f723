"""Run by torchrun: clfew, whose command line and environment are not the same in all processes.

    torchrun by_rank.py JSON

JSON has the arguments and variables of the first process, and those of the others. The others do not
find the folder HIDDEN.
"""

import json
import os
import sys

from clfew.data import elsewhere

if __name__ == "__main__":
    arguments, variables = json.loads(sys.argv[1])[min(1, int(os.environ["RANK"]))]
    os.environ |= variables
    sys.argv = ["clfew", *arguments]
    places = elsewhere._places
    hidden = os.environ.get("HIDDEN")
    elsewhere._places = lambda *args: (each for each in places(*args) if each != hidden)
    from clfew.__main__ import main

    main()
