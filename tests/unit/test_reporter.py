import subprocess

from tqdm import tqdm

from raykit.engine.folder import RunFolder
from raykit.engine.reporter import Reporter, captured


def test_what_is_printed_is_in_the_log_in_its_order_also_from_bars_and_programs(tmp_path):
    (tmp_path / "spec.json").touch()
    with captured(Reporter(None, "cell", RunFolder.of(tmp_path))):
        print("starting\r\n", end="")
        for _ in tqdm(range(3), desc="outer", ncols=40, mininterval=0):
            for _ in tqdm(range(3), desc="inner", ncols=40, mininterval=0, leave=False):
                pass
        print("of Python")
        subprocess.run(["echo", "of a program"], check=True)
        print("no line end", end="")
    lines = (tmp_path / "logs" / "cell.log").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines[-4:]] == ["outer", "of Python", "of a program", "no line end"]
    assert "100%" in lines[-4]
    assert lines[0] == "starting"
    assert sum(line.startswith(("outer", "inner")) for line in lines) <= 3
