"""The journal of a run that the kernel executes itself, and the words that make no sense for such a run."""

from __future__ import annotations

import threading

import pytest

from raykit import events as ev
from raykit.client.observed import Journal, ObservedRun
from raykit.errors import RunError, RunFailedError, RunLostError, RunStoppedError

ACCEPTED = ev.RunAccepted(run_kind="observed", folder="", stages=("1. Read", "2. Map"))


def test_records_are_numbered_and_given_after_a_number():
    journal = Journal("dataset")
    journal.tell(ACCEPTED)
    journal.tell(ev.RunStarted())
    assert [(record.number, record.run) for record in journal.events("dataset")] == [(1, "dataset"), (2, "dataset")]
    assert [record.event for record in journal.events("dataset", after=1)] == [ev.RunStarted()]
    assert journal.events("dataset", after=2) == []


def test_who_waits_is_given_the_news_of_another_thread():
    journal = Journal("dataset")
    teller = threading.Timer(0.05, journal.tell, (ACCEPTED,))
    teller.start()
    assert [record.event for record in journal.events("dataset", wait_s=10)] == [ACCEPTED]
    teller.join()


def test_many_threads_lose_no_record():
    journal = Journal("dataset")
    threads = [threading.Thread(target=lambda: [journal.tell(ev.RunStarted()) for _ in range(200)]) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [record.number for record in journal.events("dataset")] == list(range(1, 801))


def _run(*events):
    journal = Journal("dataset")
    for each in (ACCEPTED, ev.RunStarted(), *events):
        journal.tell(each)
    run = ObservedRun("dataset", journal)
    run.refresh()
    return run


def test_before_its_first_sample_an_observed_run_knows_nothing_of_its_operators():
    stage = _run().view.stages[0]
    assert (stage.num_replicas, stage.rows_in, stage.rows_waiting, stage.num_failed_tasks) == (None,) * 4


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: run.stop(),
        lambda run: run.drill(),
        lambda run: run.resize(2),
        lambda run: run.apply(),
        lambda run: run.logs(),
        lambda run: run.result,
        lambda run: run.output("x"),
        lambda run: run.quarantine,
        lambda run: run.state_dict(),
    ],
)
def test_words_for_runs_of_a_cluster_are_refused_with_a_sentence(ask):
    with pytest.raises(RunError, match="plain Ray Data code"):
        ask(_run())


def test_an_end_that_is_not_well_is_raised_without_a_word_of_resuming():
    with pytest.raises(RunStoppedError) as stopped:
        _run(ev.RunEnded(state="stopped")).wait()
    assert "resume" not in str(stopped.value)
    with pytest.raises(RunLostError) as lost:
        _run(ev.RunEnded(state="lost", error="why")).wait()
    assert "resume" not in str(lost.value)
    with pytest.raises(RunFailedError, match="no good"):
        _run(
            ev.UserFailed(where="Ray Data", error="ValueError: no good", traceback_text="no good"),
            ev.RunEnded(state="failed", error="ValueError: no good"),
        ).wait()
    assert _run(ev.RunEnded(state="done")).wait().view.state == "done"
