"""Pipelines from Python and from cells: stages, their source, and the run that they become."""

from __future__ import annotations

import glob
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from raykit.client.capture import pack, with_extra
from raykit.client.run import Run, start
from raykit.errors import InputError, OptionError, SourceError
from raykit.spec import PipelineSpec, SourceSpec, StageSpec
from raykit.spec.pipeline import ANY_REPLICAS
from raykit.spec.priority import Priority
from raykit.spec.rows import rows_in
from raykit.wire.payload import SOURCE, Payload

Work = TypeVar("Work", bound=Callable[..., Any])
MARK = "__raykit_stage__"
ON_ERROR = "__raykit_on_error__"
COST = "__raykit_cost__"

FORMATS = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    ".csv": "csv",
    **dict.fromkeys((".json", ".jsonl"), "json"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"), "images"),
    **dict.fromkeys((".txt", ".md"), "text"),
}


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
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
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

    def run(
        self,
        source: Any,
        *,
        name: str = "pipeline",
        limit: int | None = None,
        output: str | None = None,
        priority: Priority = "normal",
        on: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Run:
        """Start the pipeline and give its viewer; ``.wait().result`` reads the rows.

        Args:
            source: an iterable of rows (other items become ``{"item": item}``), which is taken in whole before anything
                starts, up to ``limit``; a path or glob or URL; a table of pandas; or a function, which is called in the
                cluster. One that yields or returns rows is read while the stages work, and may be endless with ``limit``;
                one that returns a Ray Dataset is called a second time, to make it. A function gives its rows in the same
                order each time: where its process dies, or a run is taken up, it is begun again, and the rows that are
                there are left out by their place.
            name: how the run is called.
            limit: take only so many rows.
            output: folder or URL for the Parquet parts, if not the run's own folder.
            priority: ``"low"``, ``"normal"`` or ``"high"``; elastic training of a lower one lends what it waits for.
            on: the cluster; the current one if not given.
            env: variables of the environment of the source's and each replica's process, set before their modules are imported.
                Those of a stage's ``runtime_env`` come first.

        Raises:
            InputError: no stage, or an empty or unknown source.
        """
        return start(*self.prepare(source, name=name, limit=limit, output=output, priority=priority), on=on, env=env)

    def prepare(
        self,
        source: Any,
        *,
        name: str = "pipeline",
        limit: int | None = None,
        output: str | None = None,
        outputs: tuple[str, ...] = (),
        priority: Priority = "normal",
    ) -> tuple[PipelineSpec, Payload]:
        """Check everything that can be checked here, and give what travels."""
        if not self.stages:
            raise InputError(
                "The pipeline has no stage.", "Mark a function or a class with @rk.stage(...), or name stages by --stages."
            )
        specs = tuple(stage_spec(each) for each in self.stages)
        described, value = describe_source(source, limit=limit)
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


def describe_source(source: Any, *, limit: int | None = None) -> tuple[SourceSpec, Any]:
    """Say what a source is, and give what of it must travel: of an iterable all rows, so an endless one needs a ``limit``.

    Raises:
        SourceError: it is empty, not there, or of no known form.
    """
    if isinstance(source, str | Path):
        return _describe_path(str(source)), None
    if callable(source):
        return SourceSpec(form="function", label=getattr(source, "__name__", "function")), source
    rows = rows_in(source)
    if rows is None:
        raise SourceError(
            f"A {type(source).__name__} is no source.",
            "Give an iterable of rows, a path, or a function that makes rows or a Ray Dataset.",
        )
    most = None if limit is None else max(1, limit)
    taken = source[:most] if isinstance(source, range) else list(itertools.islice(rows, most))
    if not taken:
        raise SourceError("The source is empty.", "Give at least one row; an iterator that was used up before gives none.")
    return SourceSpec(form="items"), taken


def _describe_path(path: str) -> SourceSpec:
    if "://" in path:
        return SourceSpec(form="path", paths=(path,), format=_format_of(path), label=path)
    if glob.has_magic(path):
        found = sorted(glob.glob(str(Path(path).expanduser()), recursive=True))
    else:
        found = [path] if Path(path).expanduser().exists() else []
    if not found:
        raise SourceError(f"Nothing is at {path} (looked from {Path.cwd()}).", "Correct the path, or give an absolute one.")
    absolute = tuple(str(Path(each).expanduser().resolve()) for each in found)
    first = Path(absolute[0])
    if first.is_dir():
        files = [file for file in sorted(first.rglob("*")) if file.is_file() and not file.name.startswith(("_", "."))]
        if not files:
            raise SourceError(f"The folder {path} has no file.", "Give a folder with data.")
        return SourceSpec(form="path", paths=absolute, format=_format_of(str(files[0])), label=path)
    return SourceSpec(form="path", paths=absolute, format=_format_of(absolute[0]), label=path)


def _format_of(path: str) -> str:
    return FORMATS.get(Path(path).suffix.lower(), "binary")


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


def _check_is_stage(work: Any) -> None:
    if not callable(work):
        raise InputError(f"{work!r} is no stage.", "Give functions or classes marked with @rk.stage(...).")
    if inspect.isclass(work) and not any("__call__" in vars(each) for each in work.__mro__):
        raise InputError(f"The class {work.__name__} has no __call__.", "A stage's class takes a row or a batch in __call__.")


def _absolute(output: str | None) -> str | None:
    return output if output is None or "://" in output else str(Path(output).expanduser().resolve())
