"""A checkpoint is whole or it is not there, wherever it lies."""

from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch

from raykit.engine.training.checkpoint import Checkpoints


def _state(step):
    return {
        "model": OrderedDict(weight=torch.full((3,), float(step))),
        "optimizers": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}, {"state": {0: {"step": torch.tensor(1.0)}}}],
        "scaler": None,
        "step": step,
    }


@pytest.fixture(params=["folder", "url"])
def place(request, tmp_path):
    return str(tmp_path / "kept") if request.param == "folder" else f"memory://{tmp_path}"


def _written(place, steps, **options):
    told = []
    checkpoints = Checkpoints(place, kept=2, told=told.append, **options)
    for step in steps:
        checkpoints.save(step, partial(_state, step))
    checkpoints.finish()
    return checkpoints, told


def test_a_state_comes_back_as_it_was_with_its_empty_parts_and_its_numbers_as_keys(place):
    checkpoints, told = _written(place, [7])
    back = checkpoints.newest()
    assert back["step"] == 7
    assert back["optimizers"][0] == {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    assert list(back["optimizers"][1]["state"]) == [0]
    assert back["model"]["weight"].tolist() == [7.0] * 3
    assert [event.step for event in told] == [7]


def test_only_so_many_are_kept_the_newest_ones(place):
    checkpoints, told = _written(place, [1, 2, 3, 4])
    assert checkpoints.newest()["step"] == 4
    assert not Path(told[0].path).exists()


def test_what_is_saved_is_the_state_of_that_moment(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), kept=1, told=lambda _: None)
    state = _state(1)
    checkpoints.save(1, lambda: state)
    state["model"]["weight"].zero_()
    checkpoints.finish()
    assert checkpoints.newest()["model"]["weight"].tolist() == [1.0] * 3


def test_a_torn_checkpoint_is_never_loaded(tmp_path):
    checkpoints, told = _written(str(tmp_path), [1, 2])
    newest = Path(told[-1].path)
    (newest / ".metadata").unlink()
    assert checkpoints.newest()["step"] == 1


def test_a_checkpoint_whose_file_was_cut_short_gives_way_to_the_one_before(tmp_path):
    checkpoints, told = _written(str(tmp_path), [1, 2])
    data = next(Path(told[-1].path).glob("*.distcp"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    assert checkpoints.newest()["step"] == 1


def test_where_nothing_was_saved_there_is_nothing(place):
    assert Checkpoints(place, kept=1, told=lambda _: None).newest() is None


def test_a_place_that_cannot_be_written_is_told_and_ends_no_training(tmp_path):
    (tmp_path / "file").touch()
    checkpoints, told = _written(str(tmp_path / "file" / "inside"), [1])
    assert [type(event).__name__ for event in told] == ["CheckpointFailed"]
    assert "Not a directory" in told[0].reason
    assert checkpoints.newest() is None


def test_a_step_whose_write_failed_is_written_when_it_is_asked_for_again_and_then_no_more(tmp_path):
    (tmp_path / "file").touch()
    checkpoints, told = _written(str(tmp_path / "file" / "inside"), [1])
    (tmp_path / "file").unlink()
    for _ in range(2):
        checkpoints.save(1, partial(_state, 1))
        checkpoints.finish()
    assert [type(event).__name__ for event in told] == ["CheckpointFailed", "CheckpointSaved"]
    assert checkpoints.newest()["step"] == 1
