"""The fake tree keeps the contract that tests/e2e/test_cgroups.py holds the kernel to."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from jobworker.testing import FakeCgroupTree
from jobworker.testing.contract import CORE_CHECKS, LIMIT_CHECKS, Site

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("check", CORE_CHECKS + LIMIT_CHECKS, ids=lambda check: check.__name__)
def test_fake_tree(check: Callable[[Site], None]):
    tree = FakeCgroupTree(mounted_at="/cgroup2")
    tree.mkdir("/cgroup2/site")
    if check in LIMIT_CHECKS:
        for path in ("/cgroup2", "/cgroup2/site"):
            tree.write(f"{path}/cgroup.subtree_control", "+cpu +memory +io +pids")
    pids = count(1000)
    check(Site(tree.files, "/cgroup2/site", spawn=lambda: next(pids)))
