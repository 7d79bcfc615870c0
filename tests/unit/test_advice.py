from raykit.decisions import Advise, StageChange, Try
from raykit.policy.advice import StageUse, advise
from raykit.policy.balance import Resources, StageLoad

CPU = Resources(num_cpus=1)
GB = 1_000_000_000


def _use(stage, work_s, num_replicas=1, *, needs=CPU, least=1, most=12, **facts):
    load = StageLoad(stage=stage, needs=needs, num_replicas=num_replicas, min_replicas=least, max_replicas=most, work_s=work_s)
    return StageUse(load=load, **{"used_cpus": needs.num_cpus, "wanted_cpus": needs.num_cpus} | facts)


def _advise(stages, nodes, *, tried=(), limit=None):
    return advise(stages, nodes, tried=dict(tried), rows_s=1.0, limit=limit)


def _settled(stages, nodes, cost):
    """Let everything be tried that the policy asks for; ``cost`` gives what a row costs with a change."""
    tried = {}
    while isinstance(said := advise(stages, nodes, tried=tried, rows_s=1.0), Try):
        assert said.change not in tried
        tried[said.change] = cost(said.change)
    return said, tried


def test_a_stage_that_its_own_limit_holds_up_is_named_with_the_gain_of_a_higher_one():
    advice = _advise([_use("decode", 0.1), _use("model", 1.0, 2, most=2)], [Resources(num_cpus=6)])
    assert advice.changes == (StageChange(stage="model", min_replicas=1, max_replicas=5),)
    assert (advice.rows_s, advice.expected_rows_s) == (2.0, 5.0)
    assert "model is the bottleneck" in advice.reason


def test_a_least_number_that_takes_what_another_stage_needs_is_advised_away():
    advice = _advise([_use("decode", 0.1, 4, least=4), _use("model", 1.0, 2)], [Resources(num_cpus=6)])
    assert StageChange(stage="decode", min_replicas=1, max_replicas=12) in advice.changes
    assert advice.expected_rows_s == 5.0


def test_a_full_cluster_is_named_and_what_more_would_give():
    advice = _advise([_use("decode", 0.1), _use("model", 1.0, 3)], [Resources(num_cpus=4)])
    assert advice.changes == ()
    assert "the cluster is full, 1 CPUs more would help" in advice.reason
    assert (advice.rows_s, advice.expected_rows_s) == (3.0, 4.0)


def test_a_slow_source_or_sink_is_not_blamed_on_a_stage():
    stages = [_use("decode", 0.1), _use("model", 0.2)]
    said = _advise(stages, [Resources(num_cpus=4)], limit="source")
    assert "the source" in said.reason
    assert (said.rows_s, said.expected_rows_s) == (1.0, 10.0)
    assert "written" in _advise(stages, [Resources(num_cpus=4)], limit="sink").reason


def test_nothing_is_advised_before_all_stages_are_measured_or_while_the_balance_can_do_it():
    assert _advise([_use("a", 0.1), _use("b", None)], [Resources(num_cpus=4)]) is None
    assert _advise([_use("a", 0.1), _use("b", 1.0)], [Resources(num_cpus=4)]) is None


def test_larger_batches_are_tried_one_after_the_other_until_they_give_little_more():
    stages = [_use("decode", 0.01), _use("model", 1.0, 3, batch_size=4)]
    said, tried = _settled(stages, [Resources(num_cpus=4)], lambda change: 0.2 + 0.8 * 4 / change.batch_size)
    assert [change.batch_size for change in tried] == [8, 16, 32, 64]
    assert said.changes == (StageChange(stage="model", batch_size=64),)
    assert said.expected_rows_s == 3 / (0.2 + 0.8 / 16)


def test_a_batch_that_fails_or_gives_nothing_is_not_advised():
    stages = [_use("decode", 0.01), _use("model", 1.0, 3, batch_size=4)]
    for cost in (lambda _: None, lambda _: 0.99):
        said, tried = _settled(stages, [Resources(num_cpus=4)], cost)
        assert len(tried) == 1
        assert said.changes == ()
    said, _ = _settled(stages, [Resources(num_cpus=4)], lambda change: 0.5 if change.batch_size == 8 else None)
    assert said.changes == (StageChange(stage="model", batch_size=8),)


def test_only_the_bottleneck_is_tried():
    stages = [_use("decode", 0.01, batch_size=4), _use("model", 1.0, 3)]
    assert isinstance(_advise(stages, [Resources(num_cpus=4)]), Advise)


def test_threads_that_crowd_a_replica_are_tried_at_the_cpus_that_it_holds():
    stages = [_use("model", 1.0, 2, used_cpus=1.0, wanted_cpus=7.5)]
    said, tried = _settled(stages, [Resources(num_cpus=2)], lambda _: 0.25)
    assert list(tried) == [StageChange(stage="model", num_threads=1)]
    assert "wants 7.5 CPUs for its threads and holds 1" in said.reason
    assert (said.rows_s, said.expected_rows_s) == (2.0, 8.0)


def test_calls_that_wait_are_made_at_once_where_they_may_be():
    stages = [_use("fetch", 1.0, 2, can_overlap=True, used_cpus=0.02, wanted_cpus=0.02, needs=Resources(num_cpus=0.1))]
    said, _ = _settled(stages, [Resources(num_cpus=0.2)], lambda change: 1.0 / change.concurrency)
    assert said.changes == (StageChange(stage="fetch", concurrency=16),)


def test_who_holds_more_than_it_uses_is_advised_to_hold_less_when_that_makes_room():
    waits = _use("write", 1.0, 2, needs=Resources(num_cpus=2), used_cpus=0.1, wanted_cpus=0.1)
    said = _advise([_use("decode", 0.1, most=1), waits], [Resources(num_cpus=5)])
    assert said.changes == (StageChange(stage="write", num_cpus=0.2),)
    assert said.expected_rows_s == 10.0
    large = _use("model", 1.0, 2, needs=Resources(num_cpus=1, memory_bytes=4 * GB), peak_memory_bytes=GB // 2, used_cpus=1.0)
    said = _advise([_use("decode", 0.1, most=1), large], [Resources(num_cpus=12, memory_bytes=10 * GB)])
    assert said.changes == (StageChange(stage="model", memory_bytes=700_000_000),)
    assert said.expected_rows_s == 10.0


GPU = Resources(num_cpus=1, num_gpus=1)


def test_who_leaves_most_of_its_gpu_alone_is_advised_to_hold_a_fraction():
    model = _use("model", 1.0, 2, needs=GPU, used_cpus=0.1, used_gpus=0.2, gpu_memory_share=0.1)
    said = _advise([_use("decode", 0.1, most=1), model], [Resources(num_cpus=12, num_gpus=2)])
    assert said.changes == (StageChange(stage="model", num_gpus=0.25),)
    assert said.expected_rows_s == 8.0
    assert "keeps 0.20 at work" in said.reason


def test_memory_of_a_gpu_that_is_held_or_use_that_is_not_known_keeps_the_gpu_whole():
    for facts in ({"used_gpus": 0.2, "gpu_memory_share": 0.6}, {"used_gpus": None, "gpu_memory_share": None}):
        model = _use("model", 1.0, 2, needs=GPU, used_cpus=0.1, **facts)
        said = _advise([_use("decode", 0.1, most=1), model], [Resources(num_cpus=12, num_gpus=2)])
        assert said.changes == ()
        assert "the cluster is full" in said.reason


def test_a_stage_that_computes_on_cpus_with_a_gpu_in_hand_is_advised_to_be_split():
    model = _use("model", 1.0, 2, needs=GPU, used_cpus=0.9, used_gpus=0.2, gpu_memory_share=0.6)
    said = _advise([_use("decode", 0.1, most=1), model], [Resources(num_cpus=12, num_gpus=2)])
    assert said.changes == ()
    assert "model computes on CPUs for 80% of its time" in said.reason
    # A CPU is decode's and two go with the GPUs, which alone would take 10 rows/s; nine are left for 0.8 s a row.
    assert said.expected_rows_s == 10.0


def test_a_split_is_not_advised_where_no_cpu_is_left_for_it():
    model = _use("model", 1.0, 2, needs=GPU, used_cpus=0.9, used_gpus=0.2, gpu_memory_share=0.6)
    said = _advise([_use("decode", 0.1, most=1), model], [Resources(num_cpus=3, num_gpus=2)])
    assert "computes on CPUs" not in said.reason
