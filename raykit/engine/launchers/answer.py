"""How a launcher is asked, and answers: in JSON, by standard input and output.

It answers ``{"machines": [...]}``, or of a plan ``{"resources": {...}}``, or ``{"refused": [problem, remedy]}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

NODE = "node"


class RefusedError(Exception):
    """Asked for what cannot be. Facts: the problem, and what to do."""


def answer(verbs: dict[str, Callable[..., dict[str, Any]]], refusal: Callable[[BaseException], Sequence[str]]) -> None:
    """Do the verb that is asked, and tell what came of it; ``refusal`` gives the problem and the remedy of an error."""
    asked = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):  # the launcher talks
        try:
            told = verbs[asked.pop("verb")](**asked)
        except KeyboardInterrupt:
            raise
        except RefusedError as exc:
            told = {"refused": exc.args}
        except BaseException as exc:  # it also aborts by leaving the program
            told = {"refused": refusal(exc)}
    sys.stdout.write(json.dumps(told))


def cluster_name(cloud: dict[str, Any]) -> str:
    """Give the name by which the cloud knows the machines of a cluster."""
    return f"raykit-{cloud['name']}"
