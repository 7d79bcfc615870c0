"""The GPUs of this machine, as NVIDIA's driver tells of them.

A look never raises: what a GPU or its driver does not tell is None, and what is broken is said in the driver's words.
Process lists cost the driver milliseconds (MangoHud, issue 2104) and are asked each ``LIST_S`` at most.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import psutil
import pynvml

from raykit.events import GpuUse

LIST_S = 5.0
RETRY_S = 5.0
IDLE_BYTES = 64 * 2**20  # of a GPU that nobody uses
NOT_TOLD = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_NOT_FOUND,
    pynvml.NVML_ERROR_NO_DATA,
    pynvml.NVML_ERROR_INSUFFICIENT_SIZE,  # of a list that grew meanwhile
)
THROTTLES = {
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksThrottleReasonSyncBoost: "sync boost",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "heat",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "heat, by the hardware",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """The processes that hold memory of a GPU, in bytes where the driver tells them.

    ``shares`` of the GPU's time are told of one that several use; None where they are not.
    """

    memory_bytes: Mapping[int, int | None]
    shares: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLook:
    """A GPU, or an instance of one, and who uses it; None where that is not told."""

    use: GpuUse
    users: Users | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusLook:
    """All GPUs of the machine, an instance after the GPU that it is of. None where no driver tells, ``fault`` then says why."""

    gpus: tuple[GpuLook, ...] | None
    fault: str = ""


class Gpus:
    """Reads them, and opens the driver's library anew when it was closed under it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_open = False
        self._tried_s = self._listed_s = float("-inf")
        self._fault = ""
        self._names: dict[str, str | None] = {}
        self._users: dict[str, Users | None] = {}
        self._told_until_us: dict[str, int] = defaultdict(int)

    def look(self) -> GpusLook:
        """Look at all GPUs; who uses them is up to ``LIST_S`` old."""
        try:
            count = self._count()
        except pynvml.NVMLError as exc:
            self._fault = str(exc)
        if not self._is_open:
            return GpusLook(gpus=None, fault=self._fault)
        now_s = self._clock()
        lists = now_s - self._listed_s >= LIST_S
        if lists:
            self._listed_s = now_s
        return GpusLook(gpus=tuple(look for index in range(count) for look in self._gpu(index, lists=lists)))

    def _count(self) -> int:
        """Give how many there are, 0 while the library cannot be opened."""
        now_s = self._clock()
        if not self._is_open and now_s - self._tried_s >= RETRY_S:
            self._tried_s = now_s
            pynvml.nvmlInit()
            self._is_open = True
        if not self._is_open:
            return 0
        try:
            return int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError:
            self._is_open = False
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            raise

    def _gpu(self, index: int, *, lists: bool) -> list[GpuLook]:
        """Give a GPU, and the instances that it was cut into."""
        gpu = str(index)
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            use = _use(gpu, handle)
            self._names[gpu] = use.name
            instances = [(_use(f"{gpu}:{number}", instance), instance) for number, instance in _instances(handle)]
            if not instances:
                return [self._with_users(use, handle, lists=lists)]
            return [GpuLook(use=use), *(self._with_users(part, instance, lists=lists) for part, instance in instances)]
        except pynvml.NVMLError as exc:
            # Who used it is remembered: they are told that it is gone from under them.
            used = [users for name, users in self._users.items() if users and name.partition(":")[0] == gpu]
            pids = {pid: None for users in used for pid in users.memory_bytes}
            users = Users(memory_bytes=pids) if used else None
            return [GpuLook(use=GpuUse(gpu=gpu, name=self._names.get(gpu), fault=str(exc)), users=users)]

    def _with_users(self, use: GpuUse, handle: Any, *, lists: bool) -> GpuLook:
        if lists:
            listed = _told(pynvml.nvmlDeviceGetComputeRunningProcesses, of=handle)
            memory = None if listed is None else {process.pid: process.usedGpuMemory for process in listed}
            if memory is None or not is_complete(memory, use):
                self._users[use.gpu] = None
            else:
                self._users[use.gpu] = Users(memory_bytes=memory, shares=self._shares(use.gpu, handle) if len(memory) > 1 else None)
        return GpuLook(use=use, users=self._users.get(use.gpu))

    def _shares(self, gpu: str, handle: Any) -> dict[int, float] | None:
        """Give the share of each process in the GPU's time since the last look: a mean of what the driver has sampled."""
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, self._told_until_us[gpu])
        except pynvml.NVMLError as exc:
            if exc.value in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND):  # how it says that nobody did anything
                return {}
            if exc.value in NOT_TOLD:
                return None
            raise
        shares: dict[int, list[int]] = defaultdict(list)
        for sample in samples:
            shares[sample.pid].append(sample.smUtil)
            self._told_until_us[gpu] = max(self._told_until_us[gpu], sample.timeStamp)
        return {pid: mean(percents) / 100 for pid, percents in shares.items()}


def is_complete(pids: Iterable[int], use: GpuUse) -> bool:
    """Say whether a list of a GPU's users can be believed.

    In a container the driver may leave processes out, or name them by ids that are others' here: so all of them must be
    there, and a GPU that is in use must have users.
    """
    pids = list(pids)
    in_use = (use.utilization or 0) > 0 or (use.memory_used_bytes or 0) > IDLE_BYTES
    return all(map(psutil.pid_exists, pids)) and (bool(pids) or not in_use)


def _told(*calls: Callable[..., Any], of: Any) -> Any:
    """Give what the first of these calls answers that this driver has; None where this GPU or user is not told.

    Raises:
        NVMLError: the GPU or the driver is broken.
    """
    for call in calls:
        try:
            return call(of)
        except pynvml.NVMLError as exc:
            if exc.value not in NOT_TOLD:
                raise
    return None


def _instances(handle: Any) -> Iterator[tuple[int, Any]]:
    mode = _told(pynvml.nvmlDeviceGetMigMode, of=handle)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return
    for number in range(_told(pynvml.nvmlDeviceGetMaxMigDeviceCount, of=handle) or 0):
        instance = _told(lambda of, number=number: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(of, number), of=handle)
        if instance is not None:
            yield number, instance


_OWN_MEMORY = partial(pynvml.nvmlDeviceGetMemoryInfo, version=pynvml.nvmlMemory_v2)  # without what the driver keeps for itself
_TEMPERATURES = (
    partial(pynvml.nvmlDeviceGetTemperatureV, sensor=pynvml.NVML_TEMPERATURE_GPU),
    partial(pynvml.nvmlDeviceGetTemperature, sensor=pynvml.NVML_TEMPERATURE_GPU),
)
_REASONS = (pynvml.nvmlDeviceGetCurrentClocksEventReasons, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)


def _use(gpu: str, handle: Any) -> GpuUse:
    rates = _told(pynvml.nvmlDeviceGetUtilizationRates, of=handle)
    memory = _told(_OWN_MEMORY, pynvml.nvmlDeviceGetMemoryInfo, of=handle)
    milliwatts = _told(pynvml.nvmlDeviceGetPowerUsage, of=handle)
    reasons = _told(*_REASONS, of=handle)
    return GpuUse(
        gpu=gpu,
        name=_told(pynvml.nvmlDeviceGetName, of=handle),
        utilization=None if rates is None else rates.gpu / 100,
        memory_used_bytes=None if memory is None else memory.used,
        memory_bytes=None if memory is None else memory.total,
        power_w=None if milliwatts is None else milliwatts / 1000,
        temperature_c=_told(*_TEMPERATURES, of=handle),
        throttled_by=None if reasons is None else tuple(word for bit, word in THROTTLES.items() if reasons & bit),
    )
