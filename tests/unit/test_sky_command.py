"""What is made of what SkyPilot's command says; a few lines of shell stand in for it. The whole of it: tests/ssh/test_sky.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from raykit.cluster.places import provider
from raykit.cluster.rented.sky import SkyPilot
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec

SPEC = ClusterSpec(name="lab", place="sky", num_nodes=2)


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Have SkyPilot say words and end with a status, whatever it is asked."""

    def made(words: str, status: int = 0) -> None:
        (tmp_path / "said").write_text(words)
        (tmp_path / "sky").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\ncat {tmp_path}/said\nexit {status}\n')
        (tmp_path / "sky").chmod(0o755)
        monkeypatch.setenv("RAYKIT_SKY", str(tmp_path / "sky"))

    return made


def test_machines_are_known_by_the_names_that_ssh_knows(says):
    says('Checking\n[\n {"name": "raykit-lab", "status": "UP", "nodes": 3}\n]\n')
    machines = SkyPilot(SPEC).look()
    assert [(each.number, each.address, each.state) for each in machines] == [
        (1, "raykit-lab", "running"),
        (2, "raykit-lab-worker1", "running"),
        (3, "raykit-lab-worker2", "running"),
    ]
    says("Cluster(s) not found: \x1b[1mraykit-lab\x1b[0m.\n[]\n")
    assert SkyPilot(SPEC).look() == []


def test_a_launch_that_broke_off_is_no_running_machine(says):
    says('[{"name": "raykit-lab", "status": "INIT", "nodes": null}]')
    (machine,) = SkyPilot(SPEC).look()
    assert (machine.state, machine.runs, machine.stopped) == ("unfinished", False, False)


def test_a_refusal_is_skypilot_s_last_exception_with_what_to_do(says):
    says(
        "sky.exceptions.CommandError: first\n\x1b[31msky\x1b[0m.exceptions.ResourcesUnavailableError: none left\nin us-west-2\n", 1
    )
    with pytest.raises(ClusterError, match=r"none left\nin us-west-2 \(ResourcesUnavailableError\)\nAsk for others"):
        SkyPilot(SPEC).look()
    says("Traceback\nValueError: 7\n", 1)
    with pytest.raises(ClusterError, match=r"(?s)SkyPilot could not status: .*ValueError: 7"):
        SkyPilot(SPEC).look()


def test_a_program_that_is_not_there_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch, home: Path):
    monkeypatch.setenv("RAYKIT_SKY", "/nowhere/sky")
    with pytest.raises(ClusterError, match=r"no program /nowhere/sky.*\nSkyPilot wants an environment of its own"):
        provider("sky").up(SPEC, told=print)


def test_a_launch_that_fails_asks_what_the_server_still_does(says, tmp_path: Path):
    says('sky.exceptions.CommandError: broke off\n[{"request_id": "abc"}]', 1)
    with pytest.raises(ClusterError):
        SkyPilot(SPEC).rent([1, 2])
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith("launch --async --yes --cluster raykit-lab")
    assert asked[1] == "api status --cluster raykit-lab --output json"
