"""Whoever is ordered to be killed at a step is killed, then and only then."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from jobworker.testing import faults
from jobworker.testing.faults import SERVER, SHIM

STEPS = """
import sys
from jobworker import steps
from jobworker.testing import faults
faults.listen(sys.argv[1])
for step in sys.argv[2:]:
    steps.reached(step)
"""


@pytest.fixture
def orders(tmp_path):
    return tmp_path / "orders"


def take(orders, *steps):
    """Run a process that takes these steps; return how it ended."""
    return subprocess.run(
        [sys.executable, "-c", STEPS, str(orders), *steps], check=False
    ).returncode


def test_a_process_without_orders_takes_its_steps(orders):
    assert take(orders, "server.start.recorded", "server.start.sent") == 0


def test_a_process_is_killed_at_the_step_and_the_order_is_gone(orders, tmp_path):
    faults.order(orders, "server.start.sent", SERVER, run_dir=tmp_path)
    assert take(orders, "server.start.recorded") == 0
    assert orders.exists()
    assert take(orders, "server.start.recorded", "server.start.sent") == -signal.SIGKILL
    assert not orders.exists()


def test_a_step_is_counted_across_processes(orders, tmp_path):
    faults.order(orders, "server.start.sent", SERVER, run_dir=tmp_path, count=3)
    assert take(orders, "server.start.sent", "server.start.sent") == 0
    assert take(orders, "server.start.sent") == -signal.SIGKILL


def test_the_other_process_is_killed_and_this_one_goes_on(orders, tmp_path):
    with subprocess.Popen(["sleep", "1000"]) as server:
        faults.order(orders, "shim.launch.received", SERVER, run_dir=tmp_path, server=server.pid)
        assert take(orders, "shim.launch.received") == 0
        assert server.wait() == -signal.SIGKILL


def test_a_shim_that_is_not_one_any_more_is_left_alone(orders, tmp_path):
    """Its pid, read in the log, belongs to somebody else by now."""
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        (tmp_path / "shim.log").write_text(f"shim {bystander.pid} serves\n")
        faults.order(orders, "server.start.sent", SHIM, run_dir=tmp_path)
        assert take(orders, "server.start.sent") == 0
        assert bystander.poll() is None
        bystander.kill()


def test_a_step_that_does_not_exist_is_refused(orders, tmp_path):
    with pytest.raises(ValueError, match=r"no step 'server\.start\.never'"):
        faults.order(orders, "server.start.never", SERVER, run_dir=tmp_path)
