"""``%ray`` and ``%%ray``: a line is parsed, a function of the client is called, its result is shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_cell_magic, magics_class

from raykit.client import observed, session
from raykit.client.cluster import Cluster, health_of
from raykit.errors import OptionError
from raykit.jupyter import cells
from raykit.jupyter.display import Said, beside, nodes_of
from raykit.jupyter.table import Table
from raykit.policy.accounts import account
from raykit.render.why import HOLDER_HEADERS, LEASE_HEADERS, holder_rows, lease_rows, why_words
from raykit.spec import ClusterSpec, TaskSpec, TrainSpec
from raykit.spec.cluster import shown
from raykit.spec.lines import (
    ClusterLine,
    DrillLine,
    LogsLine,
    NoWords,
    ObserveLine,
    PipelineLine,
    ResizeLine,
    RunLine,
    ScaleLine,
    ServeLine,
    Variables,
    Viewing,
)
from raykit.spec.parse import HelpAsked, Make, complete, nearest, parse_all
from raykit.views import RunView

if TYPE_CHECKING:
    from raykit.jupyter.cells import Shown
    from raykit.jupyter.cluster_widget import ClusterWidget
    from raykit.jupyter.picker import ClusterPicker


def register(shell: Any) -> None:
    """Make ``%ray`` known to an IPython shell."""
    shell.register_magics(RayMagics)
    for prefix in ("%ray", "%%ray"):
        shell.set_hook("complete_command", _completions, str_key=prefix)
    transforms = shell.input_transformers_cleanup
    transforms[:] = [each for each in transforms if getattr(each, "__name__", "") != with_body.__name__] + [with_body]


def with_body(lines: list[str]) -> list[str]:
    """Add an empty line to a cell that is nothing but ``%%ray ...``: IPython calls no magic whose body is empty.

    So ``%%ray train --help`` answers, and ``%%ray pipeline --stages decode,classify`` needs no code.
    """
    return [*lines, "\n"] if len(lines) == 1 and lines[0].split(maxsplit=1)[:1] == ["%%ray"] else lines


@magics_class
class RayMagics(Magics):
    """One magic with words of its own, so that a notebook's namespace of magics stays free."""

    @line_cell_magic
    def ray(self, line: str, cell: str | None = None) -> Any:
        """Clusters, runs and views: ``%ray --help`` lists the words."""
        words, prefix = (_LINES, "%ray") if cell is None else (_CELLS, "%%ray")
        word, rest = _first_word(line)
        if word in ("", "-h", "--help"):
            return Said(_overview())
        if word not in words:
            raise _unknown_word(word, prefix, words)
        try:
            options = parse_all(words[word].kinds, rest, command=f"{prefix} {word}", make=words[word].make)
        except HelpAsked as asked:
            return Said(str(asked))
        return words[word].call(self.shell, *(() if cell is None else (cell,)), *options)


def _up(_: Any, spec: ClusterSpec) -> Cluster:
    return session.up_spec(spec)


def _scale(_: Any, line: ScaleLine) -> Cluster:
    return session.scale(line.name, num_nodes=line.num_nodes)


def _clusters(_: Any, __: NoWords) -> Table:
    session.end_overdue()
    rows = [
        (
            each.name,
            each.record.spec.place,
            health.state,
            shown(each.record.spec.nodes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(each.record.created_unix_s)),
            health.why,
        )
        for each in session.clusters()
        for health in (health_of(each),)
    ]
    return Table(("cluster", "place", "state", "nodes", "since", "why"), rows, empty="No cluster is up. Start one: %ray up")


def _status(_: Any, line: ClusterLine) -> ClusterWidget | Table:
    return nodes_of(session.get(line.name))


def _pick(*_: Any) -> ClusterPicker:
    from raykit.jupyter.picker import ClusterPicker

    return ClusterPicker()


def _runs(_: Any, line: ClusterLine) -> Table:
    rows = [(view.name, view.run_kind, view.state, _progress(view), _error(view)) for view in session.runs(line.name)]
    return Table(("run", "kind", "state", "progress", "error"), rows, empty="No run was started yet.")


def _leases(_: Any, line: ClusterLine) -> Table:
    return Table(LEASE_HEADERS, list(lease_rows(session.runs(line.name))), empty="No run goes on.")


def _audit(_: Any, line: ClusterLine) -> Table:
    rows = [
        (
            each.run,
            each.state,
            _seconds(each.starting_s),
            _seconds(each.running_s),
            f"{each.cpu_slot_s:.0f}",
            f"{each.gpu_slot_s:.0f}",
            None if each.busy_share is None else f"{each.busy_share:.0%}",
            each.num_cards,
        )
        for each in (account(view, time.time()) for view in session.runs(line.name))
    ]
    headers = ("run", "state", "start-up", "running", "CPU·s held", "GPU·s held", "busy in user code", "cards")
    return Table(headers, rows, empty="No run was started yet.")


def _watch(shell: Any, line: RunLine) -> Shown:
    return cells.view(shell, session.watch(line.name), quiet_s=0, only_looks=True)


def _logs(_: Any, line: LogsLine) -> None:
    print(session.watch(line.name).logs(source=line.source, tail=line.tail))  # noqa: T201  (what was asked for)


def _resume(shell: Any, line: RunLine, viewing: Viewing) -> Shown:
    return cells.view(shell, session.resume(line.name, on=viewing.on), detach=viewing.detach, quiet_s=0)


def _stop(_: Any, line: RunLine) -> Said:
    session.stop(line.name)
    return Said(f"{line.name} ends at its next commit or batch. Take it up again: %ray resume {line.name}")


def _drill(_: Any, line: DrillLine) -> str:
    session.watch(line.name).drill(line.action, after_s=line.after_s)
    return Said(line.said)


def _resize(_: Any, line: ResizeLine) -> Said:
    session.watch(line.name).resize(line.workers)
    return Said(line.said)


def _observe(_: Any, line: ObserveLine) -> Said:
    if line.what == "off":
        return Said("Ray Data is observed no more." if observed.leave() else "Nothing was observed.")
    observed.observe(beside)
    return Said("Each execution of Ray Data in this kernel is shown from now on. To end that: %ray observe off")


def _why(_: Any, line: RunLine) -> Table:
    view = session.watch(line.name).why()
    words = why_words(view)
    return Table(HOLDER_HEADERS, list(holder_rows(view)), empty=words, title=words)


def _advise(_: Any, line: RunLine) -> Said:
    return Said(session.watch(line.name).advise())


def _apply(_: Any, line: RunLine) -> Said:
    session.watch(line.name).apply()
    return Said(f"{line.name} does what its advice says; what came of it becomes a card of its view.")


def _first_word(line: str) -> tuple[str, str]:
    word, _, rest = line.strip().partition(" ")
    return ("", "") if word.startswith("#") else (word, rest)


def _unknown_word(word: str, prefix: str, words: dict[str, _Word]) -> OptionError:
    other = _CELLS if words is _LINES else _LINES
    if word in other:
        right = "is for cells: %%ray" if words is _LINES else "is for lines: %ray"
        return OptionError(f"{prefix} {word}: {word} {right} {word}.", "See %ray --help.")
    return OptionError(f"{prefix}: unknown word {word}.", f"{nearest(word, list(words))} See %ray --help.")


def _overview() -> str:
    lines = [
        f"  {prefix} {word:<10} {each.help}"
        for prefix, words in (("%ray ", _LINES), ("%%ray", _CELLS))
        for word, each in words.items()
    ]
    return "\n".join(["A Ray cluster and its runs, from a notebook. Each word has --help.", "", *lines])


def _completions(_: Any, event: Any) -> list[str]:
    words = _CELLS if event.line.lstrip().startswith("%%") else _LINES
    before = event.line[: len(event.line)].split()
    if len(before) < 2 or (len(before) == 2 and not event.line.endswith(" ")):  # noqa: PLR2004  (the magic and its word)
        return sorted(words)
    if before[1] not in words:
        return []
    return complete(words[before[1]].kinds, event.symbol if event.symbol.startswith("-") else "")


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f} s"


def _progress(view: RunView) -> str | None:
    if view.run_kind == "training":
        return f"step {view.step}" + (f" of {view.total_steps}" if view.total_steps else "")
    return None if view.progress is None else f"{view.progress:.0%}"


def _error(view: RunView) -> str:
    return view.error.partition("\n")[0]


@dataclass(frozen=True)
class _Word:
    """A word after ``%ray``: the kinds of its options, what it calls with them, a line of help, what makes the first kind."""

    kinds: tuple[type[Any], ...]
    call: Callable[..., Any]
    help: str
    make: Make | None = None


_LINES = {
    "up": _Word((ClusterSpec,), _up, "start a cluster, here or elsewhere, or take the one that is up", session.spec_of),
    "plan": _Word((ClusterSpec,), lambda _, spec: session.plan_spec(spec), "what up would make; nothing is made", session.spec_of),
    "scale": _Word((ScaleLine,), _scale, "let a cluster have another number of nodes"),
    "suspend": _Word(
        (ClusterLine,), lambda _, line: Said(session.suspend(line.name)), "give a cluster's machines back; up brings it back"
    ),
    "down": _Word((ClusterLine,), lambda _, line: Said(session.down(line.name)), "end a cluster; its runs are kept"),
    "use": _Word((ClusterLine,), lambda _, line: session.use(line.name or ""), "make a cluster the current one"),
    "pick": _Word((NoWords,), _pick, "plan, start, scale and end clusters with a form"),
    "clusters": _Word((NoWords,), _clusters, "list the clusters"),
    "status": _Word((ClusterLine,), _status, "nodes and GPUs of a cluster: slots, and what is used now"),
    "doctor": _Word((NoWords,), lambda *_: session.doctor(), "look at this machine and say what will not work"),
    "connect": _Word((ClusterLine,), lambda _, line: session.connect(line.name), "make this kernel a Ray driver"),
    "observe": _Word((ObserveLine,), _observe, "show plain Ray Data code of this kernel as it executes"),
    "runs": _Word((ClusterLine,), _runs, "list the runs of a cluster"),
    "watch": _Word((RunLine,), _watch, "show a run, with all that was missed"),
    "logs": _Word((LogsLine,), _logs, "what a run's workers printed"),
    "stop": _Word((RunLine,), _stop, "end a run at its next commit or batch"),
    "resume": _Word((RunLine, Viewing), _resume, "start a run again where it was"),
    "resize": _Word((ResizeLine,), _resize, "train on with another number of ranks"),
    "leases": _Word((ClusterLine,), _leases, "who holds what, and who gives way to whom"),
    "why": _Word((RunLine,), _why, "what a run waits for, who holds it, and what would start it now"),
    "advise": _Word((RunLine,), _advise, "what would make a pipeline faster"),
    "apply": _Word((RunLine,), _apply, "do what the advice says"),
    "drill": _Word((DrillLine,), _drill, "break something on purpose"),
    "audit": _Word((ClusterLine,), _audit, "where the time of the runs went"),
}

_CELLS = {
    "run": _Word((TaskSpec, Viewing, Variables), cells.run_cell, "run the cell on a node"),
    "train": _Word((TrainSpec, Viewing, Variables), cells.train_cell, "run the cell as elastic training"),
    "serve": _Word((ServeLine, Viewing, Variables), cells.serve_cell, "serve the stage of the cell over HTTP"),
    "pipeline": _Word((PipelineLine, Viewing, Variables), cells.pipeline_cell, "run the stages of the cell on a source"),
}
