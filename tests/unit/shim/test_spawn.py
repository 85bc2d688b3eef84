"""What is known of machines before a process is made."""

from __future__ import annotations

import pytest

from jobworker.shim.spawn import SYSTEM_CALLS, system_calls


@pytest.mark.parametrize("machine", SYSTEM_CALLS)
def test_numbers_are_those_of_the_machine(machine: str) -> None:
    assert system_calls(machine, 2**63 - 1) is SYSTEM_CALLS[machine]


@pytest.mark.parametrize("machine", ["alpha", "mips64", "armv7l", "i686", ""])
def test_nothing_is_guessed_of_other_machines(machine: str) -> None:
    assert system_calls(machine) is None


def test_32_bit_interpreter_on_a_64_bit_kernel_has_other_numbers() -> None:
    assert system_calls("x86_64", 2**31 - 1) is None
