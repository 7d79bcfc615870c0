import pytest

import raykit as rk
from raykit.errors import InputError, OptionError
from raykit.spec import ClusterSpec, StageSpec, TrainSpec
from raykit.spec.lines import DrillLine, RunLine, Viewing
from raykit.spec.parse import HelpAsked, complete, parse, parse_all, split
from raykit.spec.training import Interval, interval


def test_options_of_a_line_become_the_fields_of_a_spec():
    spec = parse(TrainSpec, "digits --workers 1:4 --gpus 0.5 --checkpoint-every 2m -o model,history", command="%%ray train")
    assert spec == TrainSpec(
        name="digits", workers=(1, 4), gpus_per_worker=0.5, checkpoint_every=Interval(seconds=120), outputs=("model", "history")
    )


def test_one_number_of_workers_is_the_least_and_the_most():
    assert parse(TrainSpec, "--workers 3", command="%%ray train").workers == (3, 3)


def test_a_range_from_more_to_less_is_refused_with_the_range_that_was_meant():
    with pytest.raises(OptionError, match="write 2:4"):
        parse(TrainSpec, "--workers 4:2", command="%%ray train")


def test_no_workers_are_refused():
    with pytest.raises(OptionError, match="at least 1"):
        parse(TrainSpec, "--workers 0", command="%%ray train")


def test_a_mistyped_option_names_the_nearest():
    with pytest.raises(OptionError, match="Did you mean --workers"):
        parse(TrainSpec, "--worker 3", command="%%ray train")


def test_a_trailing_comment_is_dropped_and_a_numbered_name_is_not():
    assert split("up lab --cpus 2  # two are enough") == ["up", "lab", "--cpus", "2"]
    assert parse(RunLine, "digits#2", command="%ray watch").name == "digits#2"


def test_an_open_quote_is_refused_with_a_sentence():
    with pytest.raises(OptionError, match="Close the quote"):
        split("--source 'images")


def test_help_lists_every_option_of_the_spec():
    with pytest.raises(HelpAsked) as asked:
        parse(ClusterSpec, "lab --help", command="%ray up")
    for option in ("--cpus", "--gpus", "--simulate-gpus", "--nodes", "--dashboard", "--profile"):
        assert option in str(asked.value)


def test_two_kinds_share_one_line():
    spec, viewing = parse_all((TrainSpec, Viewing), "digits --detach --on lab --workers 2", command="%%ray train")
    assert (spec.name, spec.workers, viewing) == ("digits", (2, 2), Viewing(on="lab", detach=True))


def test_completion_offers_the_options_that_begin_so():
    assert complete((TrainSpec, Viewing), "--ch") == ["--checkpoint-every", "--checkpoint-to", "--checkpoints-kept"]


@pytest.mark.parametrize("word", ["--cpus -1", "--cpus many", "--object-store 1K", "--profile tiny", "--nodes 0"])
def test_values_that_cannot_be_are_refused(word):
    with pytest.raises(OptionError):
        parse(ClusterSpec, word, command="%ray up")


def test_real_and_simulated_gpus_exclude_each_other():
    with pytest.raises(OptionError, match="both given"):
        ClusterSpec(num_gpus=1, num_simulated_gpus=1)


def test_a_stage_of_fewer_than_one_replica_is_refused():
    with pytest.raises(OptionError, match="replicas of stage decode"):
        StageSpec(name="decode", min_replicas=0)


def test_a_drill_needs_an_action_that_exists_and_a_run():
    with pytest.raises(OptionError, match="kill-worker, hang, kill-host"):
        parse(DrillLine, "kill-all digits", command="%ray drill")
    with pytest.raises(OptionError, match="No run is named"):
        parse(DrillLine, "kill-worker", command="%ray drill")


def test_an_interval_is_of_time_or_of_steps():
    assert interval("90s") == interval(90) == Interval(seconds=90)
    assert interval("500steps") == Interval(steps=500)
    assert interval("1 step").is_over(0, 1)
    assert not Interval(steps=500).is_over(1e9, 499)
    assert Interval(seconds=2).is_over(2, 0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--checkpoint-every 0steps", "no interval"),
        ("--checkpoint-every soon", "500steps"),
        ("--workers 1:4 --group 2", "multiples of --group"),
        ("--checkpoints-kept 0", "at least one"),
        ("--max-losses tired=3", "no cause 'tired'"),
        ("--engine torch", "raykit and ray-train"),
        ("--engine ray-train --spares 2", "--spares has no effect"),
        ("--on-loss shrink,wait", "shrink, wait, stop"),
    ],
)
def test_a_training_option_that_cannot_be_is_refused_with_what_can(line, words):
    with pytest.raises(OptionError, match=words):
        parse(TrainSpec, line, command="%%ray train")


def test_losses_are_bounded_in_all_or_by_cause():
    assert parse(TrainSpec, "--max-losses 10", command="%%ray train").max_losses == (("", 10),)
    assert parse(TrainSpec, "--max-losses hung=2,node=1", command="%%ray train").max_losses == (("hung", 2), ("node", 1))


def test_arguments_that_the_function_does_not_take_are_refused_before_anything_starts():
    with pytest.raises(InputError, match=r"checkpoint_every_s.*\n?.*rk\.train has checkpoint_every"):
        rk.train(lambda epochs: None, 3, checkpoint_every_s=30)
    with pytest.raises(InputError, match="missing a required argument: 'epochs'"):
        rk.run(lambda epochs: None)
