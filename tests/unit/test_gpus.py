"""The sampler of a node with the stand-in of NVIDIA's library: what is told, what is unknown, what breaks in the middle."""

import itertools
import os
import subprocess

import pytest

from raykit.engine.telemetry.nvml import LIST_S, Gpus
from raykit.engine.telemetry.sampler import Followed
from tests.nvml.standin import COMPILER, FarSampler, StandIn, gpu

GB = 1_000_000_000
LOST, DRIVER_NOT_LOADED, NOT_SUPPORTED, UNKNOWN = 15, 9, 3, 999
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler to build the stand-in with")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return StandIn(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def sampler(stand_in):
    far = FarSampler(stand_in.environment)
    yield far
    far.close()


@pytest.fixture
def me(sampler):
    """A process that can be followed: that of the sampler."""
    return Followed(run="digits", worker="w1", pid=sampler.pid, rank=0)


def _node(told):
    return next(sample for run, sample in told if run == "")


def _use(told, run="digits"):
    return next(sample for name, sample in told if name == run).uses[0]


def test_without_a_driver_gpus_are_unknown_and_the_rest_is_told(tmp_path):
    sampler = FarSampler({"LD_LIBRARY_PATH": str(tmp_path)})
    told = sampler.look(Followed(run="digits", worker="w1", pid=sampler.pid))
    sampler.close()
    if _node(told).gpus is not None:
        pytest.skip("this machine has a driver")
    assert "Not Found" in _node(told).fault
    assert _use(told).memory_bytes > 0
    assert (_use(told).num_gpus, _use(told).gpu_memory_bytes) == (None, None)


@needs_compiler
@pytest.mark.parametrize("count", [0, 1, 16])
def test_each_gpu_is_told(stand_in, sampler, me, count):
    stand_in.tell(*(gpu(index, 10 * (index % 10), index * GB) for index in range(count)))
    told = sampler.look(me)
    assert [each.gpu for each in _node(told).gpus] == [str(index) for index in range(count)]
    assert [each.memory_used_bytes for each in _node(told).gpus] == [index * GB for index in range(count)]


@needs_compiler
def test_a_gpu_tells_use_memory_power_heat_and_what_slows_it(stand_in, sampler):
    stand_in.tell(gpu(0, 87, 12 * GB, milliwatts=310_500, celsius=83, reasons=0x1 | 0x4 | 0x40))
    use = _node(sampler.look()).gpus[0]
    assert (use.name, use.utilization, use.memory_bytes, use.power_w, use.temperature_c) == (
        "Stand-in GPU",
        0.87,
        80 * GB,
        310.5,
        83,
    )
    assert use.throttled_by == ("power cap", "heat, by the hardware")


@needs_compiler
def test_what_a_gpu_does_not_support_is_unknown_and_not_zero(stand_in, sampler):
    calls = ("PowerUsage", "UtilizationRates", "MemoryInfo_v2", "MemoryInfo", "TemperatureV", "CurrentClocksEventReasons")
    stand_in.tell(gpu(0, 87, 12 * GB), *(f"fails 0 nvmlDeviceGet{call} {NOT_SUPPORTED}" for call in calls))
    use = _node(sampler.look()).gpus[0]
    known = (use.utilization, use.memory_used_bytes, use.memory_bytes, use.power_w, use.temperature_c, use.throttled_by)
    assert known == (None,) * 6
    assert not use.fault


@needs_compiler
def test_an_older_driver_tells_memory_in_its_own_way(stand_in, sampler):
    stand_in.tell(gpu(0, 1, 3 * GB), "fails 0 nvmlDeviceGetMemoryInfo_v2 13")
    assert _node(sampler.look()).gpus[0].memory_used_bytes == 3 * GB


@needs_compiler
def test_a_process_is_joined_with_its_gpus(stand_in, sampler, me):
    stand_in.tell(
        gpu(0, 80, 9 * GB), gpu(1, 40, 5 * GB), gpu(2), f"process 0 {me.pid} {8 * GB} 75", f"process 1 {me.pid} {4 * GB} 35"
    )
    told = sampler.look(me)
    assert _use(told).num_gpus == pytest.approx(1.2)
    assert _use(told).gpu_memory_bytes == 12 * GB
    assert [each.users for each in _node(told).gpus] == [("digits rank 0",), ("digits rank 0",), ()]


@needs_compiler
def test_processes_that_share_a_gpu_have_the_shares_that_the_driver_counts(stand_in, sampler, me):
    stand_in.tell(gpu(0, 90, 12 * GB), f"process 0 {me.pid} {8 * GB} 60", f"process 0 {os.getpid()} {4 * GB} 25")
    told = sampler.look(me)
    assert _use(told).num_gpus == pytest.approx(0.6)
    assert _node(told).gpus[0].users == ("digits rank 0", f"process {os.getpid()}")


@needs_compiler
def test_shares_of_a_gpu_that_the_driver_does_not_count_are_unknown(stand_in, sampler, me):
    lines = f"process 0 {me.pid} {8 * GB} 60", f"process 0 {os.getpid()} {4 * GB} 25"
    stand_in.tell(gpu(0, 90, 12 * GB), *lines, f"fails 0 nvmlDeviceGetProcessUtilization {NOT_SUPPORTED}")
    use = _use(sampler.look(me))
    assert (use.num_gpus, use.gpu_memory_bytes) == (None, 8 * GB)


@needs_compiler
def test_a_process_that_no_gpu_names_uses_none(stand_in, sampler, me):
    stand_in.tell(gpu(0), gpu(1, 50, 4 * GB), f"process 1 {os.getpid()} {4 * GB} 50")
    assert (_use(sampler.look(me)).num_gpus, _use(sampler.look(me)).gpu_memory_bytes) == (0, 0)


@needs_compiler
@pytest.mark.parametrize("listed", [[], ["process 0 2000000000 5 5"]], ids=["hidden", "by ids of another namespace"])
def test_in_a_container_that_hides_processes_their_use_is_unknown(stand_in, sampler, me, listed):
    stand_in.tell(gpu(0, 50, 4 * GB), *listed)
    told = sampler.look(me)
    assert (_use(told).num_gpus, _use(told).gpu_memory_bytes) == (None, None)
    assert _node(told).gpus[0].users is None
    assert _node(told).gpus[0].utilization == 0.5


@needs_compiler
def test_instances_of_mig_are_told_beside_their_gpu(stand_in, sampler, me):
    instances = f"instance 0 0 {6 * GB} {10 * GB}", f"instance 0 3 0 {10 * GB}"
    stand_in.tell(gpu(0, 90, 6 * GB), *instances, f"process 0:0 {me.pid} {5 * GB} -1")
    told = sampler.look(me)
    assert [(each.gpu, each.memory_used_bytes, each.utilization) for each in _node(told).gpus] == [
        *(("0", 6 * GB, None), ("0:0", 6 * GB, None), ("0:3", 0, None))
    ]
    assert (_use(told).num_gpus, _use(told).gpu_memory_bytes) == (None, 5 * GB)
    assert [each.users for each in _node(told).gpus] == [None, ("digits rank 0",), ()]
    with subprocess.Popen(["sleep", "60"]) as elsewhere:
        other = sampler.look(Followed(run="labels", worker="decode-1", pid=elsewhere.pid))
        elsewhere.kill()
    assert _use(other, "labels").num_gpus == 0


@needs_compiler
def test_a_gpu_that_is_lost_in_the_middle_is_told_and_the_others_go_on(stand_in, sampler, me):
    both = gpu(0, 80, 9 * GB), gpu(1, 40, 5 * GB), f"process 0 {me.pid} {8 * GB} 75"
    stand_in.tell(*both)
    assert _use(sampler.look(me)).num_gpus == 0.8
    stand_in.tell(*both, f"fails 0 * {LOST}")
    told = sampler.look(me)
    lost, other = _node(told).gpus
    assert (lost.name, lost.fault, lost.utilization, lost.memory_used_bytes) == ("Stand-in GPU", "GPU is lost", None, None)
    assert other.utilization == 0.4
    assert (_use(told).num_gpus, _use(told).gpu_memory_bytes) == (None, None)
    assert _use(told).gpu_fault == "GPU 0: GPU is lost"


@needs_compiler
def test_an_error_of_the_driver_in_one_call_is_told(stand_in, sampler):
    stand_in.tell(gpu(0, 80, 9 * GB), f"fails 0 nvmlDeviceGetPowerUsage {UNKNOWN}")
    use = _node(sampler.look()).gpus[0]
    assert (use.fault, use.utilization) == ("Unknown Error", None)


@needs_compiler
def test_a_driver_that_goes_and_comes_back_is_found_again(stand_in, sampler):
    stand_in.tell(gpu(0, 80, 9 * GB))
    assert _node(sampler.look()).gpus
    stand_in.tell(gpu(0, 80, 9 * GB), f"driver {DRIVER_NOT_LOADED}")
    gone = _node(sampler.look())
    assert (gone.gpus, gone.fault) == (None, "Driver Not Loaded")
    stand_in.tell(gpu(0, 30, 9 * GB))
    assert _node(sampler.look(after_s=LIST_S)).gpus[0].utilization == 0.3


@needs_compiler
def test_users_are_listed_once_in_five_seconds(stand_in):
    stand_in.tell(gpu(0), gpu(1))
    sampler = FarSampler(stand_in.counting)
    for _ in range(12):
        sampler.look(after_s=1)
    sampler.close()
    assert stand_in.num_calls("nvmlDeviceGetComputeRunningProcesses_v3") == 2 * 3
    assert stand_in.num_calls("nvmlDeviceGetUtilizationRates") == 2 * 12


@pytest.mark.gpu
def test_a_real_gpu_tells_what_it_uses():
    clock = itertools.count()
    gpus = Gpus(clock=lambda: float(next(clock)))
    look = gpus.look()
    if look.gpus is None:
        pytest.skip(f"there is no NVIDIA GPU here: {look.fault}")
    whole = [each.use for each in look.gpus if ":" not in each.use.gpu]
    assert whole
    for use in whole:
        assert not use.fault
        assert use.name
        assert use.memory_bytes > 0
        assert 0 <= use.memory_used_bytes <= use.memory_bytes
        assert use.utilization is None or 0 <= use.utilization <= 1
        assert use.power_w is None or 0 < use.power_w < 2000
