"""The faces of every state, as files that a reviewer reads: RAYKIT_WRITE_SNAPSHOTS=1 writes them anew."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from raykit.codec import encode
from raykit.render import to_html, to_text
from raykit.render.face import face_of
from raykit.render.text import WIDTH
from raykit.views import CardView
from raykit.views.examples import examples, lending, service

SNAPSHOTS = Path(__file__).parent / "snapshots"
STATES = examples()
EXAMPLES = STATES | {"serving": service(), "lending": lending()}


def _message(view):
    """Give what the widget is told, a field a line."""
    face = encode(face_of(view))
    past = {f"past.{name}": value for name, value in face.pop("past").items()}
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in (face | past).items())


FACES = {"txt": to_text, "html": to_html, "message": _message}


def test_there_is_an_example_of_every_state():
    assert {state: view.state for state, view in STATES.items()} == {state: state for state in STATES}
    assert set(STATES) == {
        *("waiting", "starting", "running", "recovering", "resizing", "stopping", "done", "failed", "stopped", "lost")
    }


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("state", EXAMPLES)
def test_a_face_of_a_state_is_as_it_was_reviewed(state, face):
    path = SNAPSHOTS / f"{state}.{face}"
    drawn = FACES[face](EXAMPLES[state]) + "\n"
    if os.environ.get("RAYKIT_WRITE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(drawn)
    assert drawn == path.read_text(), f"{path.name} differs; look at it, and write it anew if it is right"


@pytest.mark.parametrize("state", EXAMPLES)
def test_no_line_of_text_is_wider_than_a_page(state):
    assert max(map(len, to_text(EXAMPLES[state]).splitlines())) <= WIDTH


@pytest.mark.parametrize("state", EXAMPLES)
def test_the_static_page_has_nothing_that_github_strips(state):
    html = to_html(EXAMPLES[state])
    assert not any(word in html for word in ("<script", "<style", "<svg", "style=", "class="))


def test_of_many_cards_the_newest_are_shown_and_the_others_counted():
    cards = tuple(CardView(at_unix_s=number, title=f"loss {number}", good=True, facts=()) for number in range(1000))
    shown = face_of(replace(EXAMPLES["running"], cards=cards)).cards
    assert [card.title for card in shown] == ["950 earlier cards", *(f"loss {number}" for number in range(950, 1000))]
    assert "rk.watch(" in shown[0].facts[0][1]
