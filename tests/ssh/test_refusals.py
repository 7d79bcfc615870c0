"""What can be wrong with machines, each with its sentence, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raykit.cluster import record as records
from raykit.cluster.ssh.nodes import KEPT
from raykit.cluster.ssh.provider import Ssh
from raykit.errors import ClusterDiffersError, ClusterError, OptionError
from raykit.spec import ClusterSpec
from tests.ssh.conftest import interrupted_once, options
from tests.ssh.hosts import Host, Network

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("home")]

ANOTHER = """#!/bin/sh
PYTHONPATH={folder} exec {python} "$@"
"""
OLD = "import sys; sys.version_info = type('Version', (tuple,), {'major': 3, 'minor': 9})((3, 9, 2))"


def _refused(spec: ClusterSpec, words: str) -> None:
    with pytest.raises(ClusterError, match=words):
        Ssh().up(spec, told=print)
    assert records.find(spec.name) is None


def _left(host: Host) -> list[str]:
    """Give what is left on a machine but for the log and the runs of clusters that ended."""
    files = (file.name for file in host.folder.glob(".raykit/clusters/*/*") if file.name not in KEPT)
    return [*host.left(), *files, *(file.name for file in host.folder.glob("raykit-*"))]


def test_a_name_that_nobody_knows_is_told(spec: ClusterSpec) -> None:
    _refused(replace(spec, hosts=("no-such-machine.invalid",)), r"not reached by ssh: .*resolve.*\n.*Host of ~/.ssh/config")


def test_a_machine_that_does_not_answer_is_told(machines: Network, spec: ClusterSpec) -> None:
    machines.hosts[1].cut()
    try:
        _refused(spec, rf"{machines.hosts[1].address} is not reached by ssh: .*\nIs it on")
    finally:
        machines.hosts[1].heal()
    assert _left(machines.hosts[0]) == []


def test_a_key_that_is_not_taken_is_told(spec: ClusterSpec, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "mine"], check=True)
    config = tmp_path / "config"
    config.write_text("\n".join(line for line in Path(spec.ssh_config).read_text().splitlines() if "IdentityFile" not in line))
    _refused(
        replace(spec, key=str(tmp_path / "mine"), ssh_config=str(config)), r"Permission denied .*\nName a key that it takes: --key"
    )


def test_a_machine_whose_key_nobody_has_accepted_is_told(machines: Network, spec: ClusterSpec, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(machines.config.read_text().replace(f"{machines.folder}/known_hosts", str(tmp_path / "none")))
    _refused(replace(spec, ssh_config=str(config)), r"Host key verification failed.*\nLook at its key and accept it once.*ssh 10\.")


def test_files_that_are_not_there_are_named(spec: ClusterSpec) -> None:
    _refused(replace(spec, key="/nowhere/key"), "--key /nowhere/key: there is no such file")
    _refused(replace(spec, ssh_config="/nowhere/config"), "--ssh-config /nowhere/config: there is no such file")


def test_a_python_that_is_not_there_is_told(spec: ClusterSpec) -> None:
    _refused(replace(spec, python="/nowhere/python"), r"has no program /nowhere/python\.\nName its Python: --python")


def test_a_python_that_lacks_packages_is_told_with_the_line_that_installs_them(spec: ClusterSpec, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    _refused(replace(spec, python=str(bare / "bin/python")), r"lacks ray, .*\nInstall there: .*bin/python -m pip install 'ray\[")


def test_another_python_is_refused_with_both_versions(spec: ClusterSpec, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(OLD)
    python = tmp_path / "python"
    python.write_text(ANOTHER.format(folder=tmp_path, python=sys.executable))
    python.chmod(0o755)
    _refused(replace(spec, python=str(python)), r"has Python 3\.9 .*; this kernel is Python 3\.1")


def test_a_spec_without_machines_or_with_one_twice_is_refused() -> None:
    with pytest.raises(OptionError, match="no machines"):
        ClusterSpec(place="ssh")
    with pytest.raises(OptionError, match="names a twice"):
        ClusterSpec(place="ssh", hosts=("a", "b", "a"))
    with pytest.raises(OptionError, match="would take for an option"):
        ClusterSpec(place="ssh", hosts=("-oProxyCommand=true",))
    with pytest.raises(OptionError, match="3 nodes were asked, and --hosts names 2"):
        ClusterSpec(place="ssh", hosts=("a", "b"), num_nodes=3)
    with pytest.raises(OptionError, match="--hosts"):
        ClusterSpec(hosts=("a",))


def test_an_interrupt_in_the_middle_of_up_leaves_nothing(machines: Network, spec: ClusterSpec) -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_once(lambda: machines.hosts[0].processes("gcs_server")):
        Ssh().up(spec, told=print)
    assert records.find("lab") is None
    assert [_left(host) for host in machines.hosts] == [[], []]


def test_an_up_that_was_killed_in_the_middle_is_done_by_asking_again(machines: Network, spec: ClusterSpec) -> None:
    code = f"from raykit.cluster.ssh.provider import Ssh; from raykit.spec import ClusterSpec; Ssh().up({spec!r}, told=print)"
    asking = subprocess.Popen([sys.executable, "-c", code])
    while not machines.hosts[0].processes("gcs_server"):
        assert asking.poll() is None
        time.sleep(0.02)
    asking.kill()
    asking.wait()
    record, _ = Ssh().up(spec, told=print)
    assert len(machines.hosts[0].processes("gcs_server")) == 1
    assert Ssh().down("lab") is True
    assert [_left(host) for host in machines.hosts] == [[], []]
    assert Ssh().status(record).state == "gone"


def test_two_people_who_ask_at_once_get_one_cluster_and_the_second_may_end_it(
    machines: Network, spec: ClusterSpec, home: Any
) -> None:
    code = f"from raykit.cluster.ssh.provider import Ssh; from raykit.spec import ClusterSpec; print(Ssh().up({spec!r}, told=print)[1])"
    mine, theirs = os.environ["RAYKIT_HOME"], f"{os.environ['RAYKIT_HOME']}-theirs"

    def ask(place: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"RAYKIT_HOME": place}, capture_output=True, text=True, check=False
        )

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(ask, (mine, theirs)))
    assert all(each.returncode == 0 for each in done), [each.stderr for each in done]
    assert len(machines.hosts[0].processes("gcs_server")) == 1
    with pytest.raises(ClusterDiffersError, match="--cpus is 1, asked 2"):
        Ssh().up(replace(spec, num_cpus=2), told=print)
    record = records.find("lab")
    assert record is not None
    with pytest.raises(ClusterError, match="nothing is given back"):
        Ssh().suspend(record)
    home("home-theirs")
    assert Ssh().down("lab") is True
    assert [_left(host) for host in machines.hosts] == [[], []]
    home("home")
    assert Ssh().status(record).state == "gone"
    assert Ssh().down("lab") is True, "the record here is forgotten"


def test_a_head_that_is_gone_for_good_is_told_with_how_to_forget_it(machines: Network, spec: ClusterSpec) -> None:
    record, _ = Ssh().up(replace(spec, num_nodes=1), told=print)
    machines.hosts[0].kill()
    with pytest.raises(ClusterError, match=f"(?s)not reached.*gone for good.*{record.folder}"):
        Ssh().down("lab")
    machines.hosts[0].start()
    assert Ssh().down("lab") is True


def test_options_of_ssh_are_refused_elsewhere(machines: Network) -> None:
    with pytest.raises(OptionError, match="--key"):
        ClusterSpec(**options(machines, place="local", hosts=(), ssh_config="", python="", key="/key"))
