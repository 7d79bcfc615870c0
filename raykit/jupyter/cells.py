"""What ``%%ray run``, ``%%ray train``, ``%%ray pipeline`` and ``%%ray serve`` do with the text of their cell."""

from __future__ import annotations

import ast
import inspect
import linecache
from typing import TYPE_CHECKING, Any

from raykit.client.capture import capture_cell, check_names, with_extra
from raykit.client.environment import given_variables
from raykit.client.outputs import check_outputs
from raykit.client.pipeline import MARK, Pipeline
from raykit.client.run import Run, start
from raykit.client.service import service_spec, start_service
from raykit.errors import CellError, OptionError
from raykit.jupyter.display import QUIET_S, Said, follow, kernel_ends, stop_in_order, watched
from raykit.spec import TaskSpec, TrainSpec
from raykit.spec.lines import PipelineLine, ServeLine, Variables, Viewing
from raykit.spec.training import ON_LOSS
from raykit.wire.loop import check_cell
from raykit.wire.payload import RAY_TRAIN, compiled

if TYPE_CHECKING:
    from raykit.jupyter.widget import RunWidget

    Shown = RunWidget | Said | None

NO_VARIABLES = Variables()


def run_cell(shell: Any, cell: str, spec: TaskSpec, viewing: Viewing, variables: Variables = NO_VARIABLES) -> Shown:
    """Run a cell on a node."""
    _refuse_empty(cell)
    check_outputs(cell, spec.outputs, shell.user_ns, inputs=spec.inputs)
    payload = capture_cell(_numbered(cell), shell.user_ns, title=_title(shell), inputs=spec.inputs)
    return view(shell, start(spec, payload, on=viewing.on, env=given_variables(variables.env)), detach=viewing.detach)


def train_cell(shell: Any, cell: str, spec: TrainSpec, viewing: Viewing, variables: Variables = NO_VARIABLES) -> Shown:
    """Run a cell on every worker of an elastic training run, or the loop of Ray Train that it defines."""
    _refuse_empty(cell)
    if spec.engine != "ray-train":  # where outputs are metrics
        check_outputs(cell, spec.outputs, shell.user_ns)
    payload = capture_cell(_numbered(cell), shell.user_ns, title=_title(shell))
    if spec.engine == "ray-train":
        check_cell(cell, shell.user_ns)
    if spec.on_loss not in ON_LOSS:
        if not callable(function := shell.user_ns.get(spec.on_loss)):
            raise OptionError(f"--on-loss is {spec.on_loss!r}.", f"Give {', '.join(ON_LOSS)}, or a function of the notebook.")
        payload = with_extra(payload, "on_loss", function)
    if spec.datasets:
        if not isinstance(datasets := shell.user_ns.get(spec.datasets), dict):
            raise OptionError(f"--datasets {spec.datasets!r} is no dict of the notebook.", "Give the name of one: {'train': rows}.")
        payload = with_extra(payload, RAY_TRAIN, {"datasets": datasets, "run_config": None}, called=spec.datasets)
    return view(shell, start(spec, payload, on=viewing.on, env=given_variables(variables.env)), detach=viewing.detach)


def pipeline_cell(shell: Any, cell: str, line: PipelineLine, viewing: Viewing, variables: Variables = NO_VARIABLES) -> Shown:
    """Run a cell in the notebook, and the stages that it defines in the cluster."""
    env = given_variables(variables.env)
    defined = _define(shell, cell)
    stages = [_named(shell, name) for name in line.stages] if line.stages else defined
    if not line.source:
        raise OptionError("No source is given.", "Give one: --source NAME of the notebook, or a path.")
    source = shell.user_ns.get(line.source, line.source)
    is_name = line.output.isidentifier()
    spec, payload = Pipeline(stages).prepare(
        source,
        name=line.name,
        limit=line.limit,
        output=None if is_name else line.output or None,
        outputs=(line.output,) if is_name else (),
        priority=line.priority,
        format=line.format,
        encoding=line.encoding,
        separator=line.separator,
        as_text=line.as_text,
    )
    return view(shell, start(spec, payload, on=viewing.on, env=env), detach=viewing.detach)


def serve_cell(shell: Any, cell: str, line: ServeLine, viewing: Viewing, variables: Variables = NO_VARIABLES) -> Shown:
    """Run a cell in the notebook, and serve the stage that it defines; comes back when it takes requests.

    An interrupt before that ends it, as it ends the run of another cell; one that is updated goes on.
    """
    env = given_variables(variables.env)
    defined = _define(shell, cell)
    stages = [_named(shell, line.stage)] if line.stage else defined
    if len(stages) != 1:
        raise CellError(
            f"The cell defines {len(stages)} stages; one is served.", "Mark one with @rk.stage(...), or name one by --stage."
        )
    options = {"replicas": line.replicas, "slo_s": line.slo_s, "num_warm": line.warm, "priority": line.priority}
    spec = service_spec(stages[0], name=line.name, **options)
    service = start_service(spec, stages[0], on=viewing.on, env=env)
    if not viewing.detach:
        try:
            service.wait()
        except KeyboardInterrupt:
            if kernel_ends():
                raise
            if not service.is_update:
                stop_in_order(service.run, service.run.wait)
                service.run.raise_if_failed()
    print(service)  # noqa: T201  (its address is what was asked for)
    return watched(service.run)


def view(shell: Any, run: Run, *, detach: bool = False, quiet_s: float = QUIET_S, only_looks: bool = False) -> Shown:
    """Show a run until it is over and bring its outputs into the notebook; or leave it, when that was asked.

    A service is shown, and not waited for.
    """
    if detach:
        return Said(f"The run {run.name} goes on by itself. See it: %ray watch {run.name}")
    if run.view.run_kind == "service":
        return watched(run)
    follow(run, quiet_s=quiet_s, only_looks=only_looks)
    for output in run.view.outputs:
        shell.user_ns[output.name] = run.result if run.view.run_kind == "pipeline" else run.output(output.name)
    return None


def _refuse_empty(cell: str) -> None:
    if not cell.strip():
        raise CellError("The cell has no code.", "Write it below the line of the magic; --help on that line tells its words.")


def _define(shell: Any, cell: str) -> list[Any]:
    """Run a pipeline's cell in the notebook, and give the stages that it defines, in their order."""
    title, text = _title(shell), _numbered(cell)
    check_names(text, shell.user_ns, title)
    code = compiled(text, title)
    if code.co_flags & inspect.CO_COROUTINE:  # the kernel's loop waits for this magic
        raise CellError("A cell that defines stages cannot await.", "Await in a cell before it. Nothing was started.")
    linecache.cache[title] = (len(text), None, text.splitlines(keepends=True), title)
    exec(code, shell.user_ns)  # noqa: S102  (a cell runs in its notebook)
    names = [name for node in ast.parse(text).body for name in _bound(node)]
    made = [shell.user_ns.get(name) for name in dict.fromkeys(names)]
    return [each for each in made if hasattr(each, MARK)]


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _named(shell: Any, name: str) -> Any:
    if name not in shell.user_ns:
        raise CellError(f"--stages: {name!r} is not defined in the notebook.", "Run the cell that defines it first.")
    return shell.user_ns[name]


def _numbered(cell: str) -> str:
    """Count the magic's own line, so that a traceback's line numbers are those of the cell."""
    return "\n" + cell


def _title(shell: Any) -> str:
    return f"Cell In[{shell.execution_count}]"
