"""Pipelines from Python and from cells: stages, their source, and the run that they become."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

from raykit.client.capture import pack, with_extra
from raykit.client.run import Run, start
from raykit.client.sources import describe_source
from raykit.errors import InputError, OptionError
from raykit.spec import PipelineSpec, StageSpec
from raykit.spec.files import file_options
from raykit.spec.pipeline import ANY_REPLICAS
from raykit.spec.priority import Priority
from raykit.spec.words import nearest_named
from raykit.wire.payload import SOURCE, Payload

Work = TypeVar("Work", bound=Callable[..., Any])
MARK = "__raykit_stage__"
ON_ERROR = "__raykit_on_error__"
COST = "__raykit_cost__"
LAMBDA = (lambda: None).__name__


@overload
def stage(work: Work, /) -> Work: ...


@overload
def stage(
    *,
    cpus: float = ...,
    gpus: float = ...,
    memory: int = ...,
    batch: int | None = ...,
    cost: str | Callable[[dict[str, Any]], float] | None = ...,
    max_cost: float | None = ...,
    replicas: int | tuple[int, int] | None = ...,
    concurrency: int = ...,
    threads: int | None = ...,
    timeout_s: float | None = ...,
    on_error: str | Callable[[Any, Exception], Any] = ...,
    max_bad: float | None = ...,
    runtime_env: dict[str, Any] | None = ...,
    name: str | None = ...,
) -> Callable[[Work], Work]: ...


@nearest_named
def stage(
    work: Any = None,
    /,
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    memory: int = 0,
    batch: int | None = None,
    cost: str | Callable[[dict[str, Any]], float] | None = None,
    max_cost: float | None = None,
    replicas: int | tuple[int, int] | None = None,
    concurrency: int = 1,
    threads: int | None = None,
    timeout_s: float | None = None,
    on_error: str | Callable[[Any, Exception], Any] = "fail",
    max_bad: float | None = None,
    runtime_env: dict[str, Any] | None = None,
    name: str | None = None,
) -> Any:
    """Make a function or a class a stage of a pipeline; a function stays callable as it was.

    Used with parentheses (``@rk.stage(batch=32)``) or without (``@rk.stage``).

    Args:
        work: the function or class, where the decorator stands without parentheses.
        cpus: CPU slots that each replica holds.
        gpus: GPUs, or a fraction of one, that each replica holds.
        memory: bytes that each replica holds.
        batch: rows a call. With it the stage takes and gives a dict of arrays whose first axis is the batch; without
            it one row (a dict), and gives a row, several by ``yield``, or None for no row.
        cost: what a row costs: a column's name, or a function of the row, such as its number of tokens or seconds. Rows of
            a call are then put together by rising cost, so that those of a batch are alike.
        max_cost: a batch has at most ``batch`` rows which cost at most this together; a row that costs more is a batch.
        replicas: how many, or (least, most): between these raykit balances the stages. If not given, as many as make the
            pipeline fastest (one, of a stage that holds neither CPU nor GPU); give 1 to a stage that remembers earlier rows,
            since each replica sees some of them.
        concurrency: calls at once in a replica: by ``async def``, or in threads.
        threads: for the pools of torch, OpenMP and cv2 in a replica; as many as it holds CPUs, if not given.
        timeout_s: seconds for one call; a replica that takes longer is ended and the call made again.
        on_error: what an exception of the stage means. ``"fail"`` ends the run; ``"quarantine"`` puts the row aside (of a
            batch the rows that fail alone) and goes on; ``"retry:3"`` makes the call three times more; a function is called
            with the row or batch and the exception, and what it returns stands for the result.
        max_bad: the run fails when more rows than this are put aside: a number, or a share below 1.
        runtime_env: Ray's runtime environment of the replicas.
        name: how it is called, if not by the name of the function.

    Raises:
        InputError: what is marked is neither a function nor a class whose objects can be called.
        OptionError: a value that cannot be.
    """
    if replicas is None:
        replicas = ANY_REPLICAS if cpus or gpus else 1  # of what holds nothing there would be no end
    least, most = _range_of(replicas)
    if (cost is None) != (max_cost is None):
        raise OptionError("A stage has one of cost and max_cost.", 'Give both, as in cost="seconds", max_cost=60, or none.')

    def mark(work: Work) -> Work:
        _check_is_stage(work)
        spec = StageSpec(
            name=str(name or getattr(work, "__name__", "stage")),
            num_cpus=cpus,
            num_gpus=gpus,
            memory_bytes=memory,
            batch_size=batch,
            max_cost=max_cost,
            min_replicas=least,
            max_replicas=most,
            concurrency=concurrency,
            num_threads=threads,
            timeout_s=timeout_s,
            on_error="call" if callable(on_error) else on_error,
            max_bad=max_bad,
            runtime_env=runtime_env or {},
        )
        try:
            setattr(work, MARK, spec)
        except AttributeError as exc:
            raise InputError(f"{work!r} cannot be marked as a stage.", "Call it in a function of your own, and mark that.") from exc
        if callable(on_error):
            setattr(work, ON_ERROR, staticmethod(on_error) if inspect.isclass(work) else on_error)
        if cost is not None:
            setattr(work, COST, staticmethod(cost) if callable(cost) and inspect.isclass(work) else cost)
        return work

    return mark if work is None else mark(work)


class Pipeline:
    """Stages in their order, ready to run on a source."""

    def __init__(self, stages: Sequence[Callable[..., Any]]) -> None:
        self.stages = list(stages)

    @nearest_named
    def run(
        self,
        source: Any,
        *,
        name: str = "pipeline",
        limit: int | None = None,
        output: str | None = None,
        format: str | None = None,  # noqa: A002  (the word of the magic)
        encoding: str | None = None,
        separator: str | None = None,
        as_text: Sequence[str] | str = (),
        priority: Priority = "normal",
        on: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Run:
        """Start the pipeline and give its viewer; ``.wait().result`` reads the rows.

        Args:
            source: an iterable of rows (other items become ``{"item": item}``), which is taken in whole before anything
                starts, up to ``limit``; a path, a pattern, a URL, or :func:`raykit.files` of one; a table of pandas; or a
                function, which is called in the cluster. One that yields or returns rows is read while the stages work, and
                may be endless with ``limit``; one that returns a Ray Dataset is called a second time, to make it. A function
                gives its rows in the same order each time: where its process dies, or a run is taken up, it is begun again,
                and the rows that are there are left out by their place.
            name: how the run is called.
            limit: take only so many rows.
            output: folder or URL for the Parquet parts, if not the run's own folder.
            format: of the files at a path, where their names do not say it: see :func:`raykit.files`, also for the next three.
            encoding: of files of text.
            separator: between the fields of CSV files.
            as_text: columns of CSV files that stay text.
            priority: ``"low"``, ``"normal"`` or ``"high"``; elastic training of a lower one lends what it waits for.
            on: the cluster; the current one if not given.
            env: variables of the environment of the source's and each replica's process, set before their modules are imported.
                Those of a stage's ``runtime_env`` come first.

        Raises:
            InputError: no stage, or an empty or unknown source.
            OptionError: a value that cannot be, or how to read files with a source that is no path.
        """
        read: dict[str, Any] = {"format": format, "encoding": encoding, "separator": separator, "as_text": as_text}
        return start(*self.prepare(source, name=name, limit=limit, output=output, priority=priority, **read), on=on, env=env)

    def prepare(
        self,
        source: Any,
        *,
        name: str = "pipeline",
        limit: int | None = None,
        output: str | None = None,
        outputs: tuple[str, ...] = (),
        priority: Priority = "normal",
        **read: Any,
    ) -> tuple[PipelineSpec, Payload]:
        """Check everything that can be checked here, and return what travels; ``read`` is how files are read."""
        if not self.stages:
            raise InputError(
                "The pipeline has no stage.", "Mark a function or a class with @rk.stage(...), or name stages by --stages."
            )
        specs = tuple(_named_spec(each, number) for number, each in enumerate(self.stages, start=1))
        described, value = describe_source(source, limit=limit, options=file_options(**read))
        if described.left_out:
            print(f"Of {described.label} is not read, as no {described.format}: {described.left_out}.")  # noqa: T201  (before it starts)
        spec = PipelineSpec(
            name=name,
            source=described,
            stages=specs,
            limit=limit,
            output_path=_absolute(output),
            outputs=outputs,
            priority=priority,
        )
        payload = pack(self.stages, {each.name: work for each, work in zip(specs, self.stages, strict=True)}, {})
        return spec, with_extra(payload, SOURCE, value, called=described.label or SOURCE)


def stage_name(work: Callable[..., Any]) -> str:
    """Give a stage's name."""
    return stage_spec(work).name


def stage_spec(work: Callable[..., Any]) -> StageSpec:
    """Give the spec of a function or a class, marked with :func:`stage` or not.

    Raises:
        InputError: it is none, or a class that cannot be called.
    """
    marked: StageSpec | None = getattr(work, MARK, None)
    if marked is not None:
        return marked
    _check_is_stage(work)
    least, most = ANY_REPLICAS
    return StageSpec(name=getattr(work, "__name__", "stage"), min_replicas=least, max_replicas=most)


def _named_spec(work: Callable[..., Any], number: int) -> StageSpec:
    """Return the spec of a pipeline's stage; a lambda has no name of its own and is called by its place."""
    spec = stage_spec(work)
    if spec.name != LAMBDA:
        return spec
    spec = replace(spec, name=f"lambda-{number}")
    setattr(work, MARK, spec)
    return spec


def _range_of(replicas: int | tuple[int, int]) -> tuple[int, int]:
    """Return the least and the most of a stage's replicas.

    Raises:
        OptionError: they are no whole numbers.
    """
    both = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not isinstance(both, tuple | list) or [type(each) for each in both] != [int, int]:
        raise OptionError(f"replicas of a stage is {replicas!r}.", "Give a number, or (least, most), as in replicas=(1, 4).")
    return both[0], both[1]


def _check_is_stage(work: Any) -> None:
    if not callable(work):
        raise InputError(f"{work!r} is no stage.", "Give functions or classes marked with @rk.stage(...).")
    if inspect.isclass(work) and not any("__call__" in vars(each) for each in work.__mro__):
        raise InputError(f"The class {work.__name__} has no __call__.", "A stage's class takes a row or a batch in __call__.")


def _absolute(output: str | None) -> str | None:
    return output if output is None or "://" in output else str(Path(output).expanduser().resolve())
