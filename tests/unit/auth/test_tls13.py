"""The restriction must be in place before gRPC is loaded; each case is a process of its own."""

import os
import subprocess
import sys

import pytest

from jobworker.auth.tls13 import CIPHER_SUITES, VARIABLE

SET_LATE = f"import os; os.environ[{VARIABLE!r}] = {CIPHER_SUITES!r}"
CHANGE = f"import os; os.environ[{VARIABLE!r}] = 'ECDHE-RSA-AES128-GCM-SHA256'"


def check_after(*statements: str, environment: dict[str, str] | None = None) -> str:
    program = "\n".join(
        [
            *statements,
            "from jobworker.auth import tls13",
            "from jobworker.errors import ConfigError",
            "try: tls13.check()",
            "except ConfigError as error: print(error)",
        ]
    )
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    inherited["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | (environment or {}),
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize(
    "package", ["jobworker.auth", "jobworker.auth.tls", "jobworker.auth.policy"]
)
def test_importing_the_package_first_is_enough(package):
    assert check_after(f"import {package}", "import grpc") == ""


def test_a_weaker_setting_of_the_host_is_replaced():
    assert check_after(environment={VARIABLE: "ECDHE-RSA-AES128-GCM-SHA256"}) == ""


def test_importing_grpc_first_is_reported_with_the_remedy():
    message = check_after("import grpc")
    assert "grpc was imported before jobworker.auth" in message
    assert f"{VARIABLE}={CIPHER_SUITES}" in message


def test_importing_grpc_first_is_fine_if_the_process_was_started_with_the_variable():
    assert check_after("import grpc", environment={VARIABLE: CIPHER_SUITES}) == ""


def test_setting_the_variable_after_grpc_was_imported_does_not_pass():
    assert "cannot restrict gRPC" in check_after("import grpc", SET_LATE)


def test_changing_the_variable_afterwards_does_not_pass():
    assert "cannot restrict gRPC" in check_after("import jobworker.auth", CHANGE, "import grpc")
