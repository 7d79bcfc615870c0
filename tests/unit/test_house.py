"""What holds for the package as a whole."""

import ast
import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import raykit

ROOT = Path(__file__).parents[2]

PUBLIC = {
    *(
        "ClusterPicker",
        "Pipeline",
        "RaykitError",
        "Result",
        "Run",
        "Service",
        "clusters",
        "connect",
        "device",
        "doctor",
        "down",
        "elastic",
        "files",
        "plan",
    ),
    *("CapacityError", "CaptureError", "CellError", "ClusterDiffersError", "ClusterError", "ClusterLostError", "InputError"),
    *("MissingPackageError", "NoClusterError", "OptionError", "RequestError", "RunError", "RunFailedError", "RunLostError"),
    *("RunNameTakenError", "RunNotFoundError", "RunStoppedError", "SourceError", "UpdateRefusedError", "WaitTimeoutError"),
    *("resume", "run", "runs", "scale", "serve", "service", "stage", "status", "stop", "suspend", "train", "up", "use", "watch"),
}


def test_the_public_names_are_these_and_all_of_them_are_there():
    assert set(raykit.__all__) == PUBLIC
    assert all(getattr(raykit, name) is not None for name in PUBLIC)


@pytest.mark.parametrize(
    "statement",
    [
        "import raykit",
        "import raykit.client.session, raykit.client.pipeline, raykit.client.doctor",
        "from IPython.core.interactiveshell import InteractiveShell as S; S().run_line_magic('load_ext', 'raykit')",
        "import raykit.jupyter.widget",
    ],
)
def test_neither_ray_nor_torch_is_imported_by(statement):
    code = f"{statement}\nimport sys; print([name for name in ('ray', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_what_benchmarks_take_from_raykit_is_there():
    for script in (ROOT / "benchmarks").glob("*.py"):
        for taken in ast.walk(ast.parse(script.read_text())):
            if isinstance(taken, ast.ImportFrom) and taken.module and taken.module.partition(".")[0] == "raykit":
                exec(ast.unparse(taken), {})


def test_the_version_is_one():
    assert version("raykit") == raykit.__version__


def test_the_types_of_the_widget_are_those_of_the_face():
    spec = importlib.util.spec_from_file_location("generate_types", ROOT / "extensions" / "widgets" / "generate_types.py")
    generate_types = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_types)
    assert generate_types.TARGET.read_text() == generate_types.generated(), "run extensions/widgets/generate_types.py"


SHIM = ROOT / "raykit" / "cluster" / "shim"


def _python(code, **environment):
    import os

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment)
    return done.stdout.strip()


def test_the_stand_in_puts_the_costly_import_off_and_answers_as_the_real_one():
    values = ["http://a.b/c", "not an iri", "https://例え.jp/ü", "", "a:b", "//x"]
    asked = f"from rfc3987_syntax import is_valid_syntax as v; print([v('iri', s) for s in {values!r}])"
    assert _python(asked, PYTHONPATH=str(SHIM)) == _python(asked)
    assert _python("import rfc3987_syntax, sys; print('lark' in sys.modules)", PYTHONPATH=str(SHIM)) == "False"


def test_jsonschema_checks_iris_with_the_stand_in_as_without():
    code = (
        "import jsonschema, sys; before = 'lark' in sys.modules\n"
        "check = jsonschema.FormatChecker().conforms\n"
        "print(before, check('http://a.b', 'iri'), check('no iri', 'iri'))"
    )
    assert _python(code, PYTHONPATH=str(SHIM)) == "False True False"
