from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from jobworker.cli import limits
from jobworker.cli.units import MAX
from jobworker.rpc.v1 import jobworker_pb2 as pb

SEED_FLAGS = (
    "--memory-min --memory-low --memory-high --memory-max --cpu-weight --cpu-max --cpu-burst-max "
    "--io-weight --io-max-rbps --io-max-wbps --io-max-riops --io-max-wiops"
)


def read(*arguments: str) -> pb.Limits:
    """Parse flags as the program does."""
    found = []

    @click.command()
    @limits.limit_options
    def command(**flags):
        found.append(limits.from_flags(flags))

    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return found[0]


def test_the_table_has_every_flag_that_users_know():
    assert set(SEED_FLAGS.split()) <= {limit.flag for limit in limits.LIMITS}


def test_the_table_has_every_limit_of_the_wire_contract():
    older_names = {"memory", "cpus", "disk_write_bps", "disk_read_bps"}
    fields = {field.name for field in pb.Limits.DESCRIPTOR.fields}
    assert {limit.field for limit in limits.LIMITS} == fields - older_names


def test_no_flag_is_no_limit():
    assert read() == pb.Limits()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--memory-min 1K", pb.Limits(memory_min=1024)),
        ("--memory-low 0", pb.Limits(memory_low=0)),
        ("--memory-high 1.5G", pb.Limits(memory_high=3 * 2**29)),
        ("--memory-max max", pb.Limits(memory_max=MAX)),
        ("--memory-swap-max 0", pb.Limits(memory_swap_max=0)),
        ("--memory-oom-group", pb.Limits(memory_oom_group=True)),
        ("--no-memory-oom-group", pb.Limits(memory_oom_group=False)),
        ("--cpu-weight 200", pb.Limits(cpu_weight=200)),
        ("--cpu-max 150%", pb.Limits(cpu_max=pb.CpuMax(quota_us=150_000, period_us=100_000))),
        ("--cpu-burst-max 20ms", pb.Limits(cpu_burst_max=20_000)),
        ("--io-weight 1", pb.Limits(io_weight=1)),
        ("--io-max-rbps 10M", pb.Limits(io_max_rbps=[pb.DeviceLimit(value=10 * 2**20)])),
        (
            "--io-max-wbps /dev/vda:1K --io-max-wbps 2K",
            pb.Limits(
                io_max_wbps=[
                    pb.DeviceLimit(device="/dev/vda", value=1024),
                    pb.DeviceLimit(value=2048),
                ]
            ),
        ),
        ("--io-max-riops 10k", pb.Limits(io_max_riops=[pb.DeviceLimit(value=10_000)])),
        ("--io-max-wiops max", pb.Limits(io_max_wiops=[pb.DeviceLimit(value=MAX)])),
        ("--pids-max 100", pb.Limits(pids_max=100)),
    ],
)
def test_flags_become_limits(flags, expected):
    assert read(*flags.split()) == expected


@pytest.mark.parametrize("limit", limits.LIMITS, ids=lambda limit: limit.field)
def test_every_limit_is_shown_by_the_name_of_its_flag(limit):
    sample = {"COUNT": "7", "SIZE": "7K", "1-10000": "7", "TIME": "7ms", "CPUS": "1.5", "": None}
    value = sample[limit.kind.metavar.removeprefix("[DEVICE:]")]
    set_limits = read(limit.flag, *([value] if value else []))
    (line,) = limits.describe(set_limits)
    assert line.startswith(limit.flag.removeprefix("--") + " ")


def test_devices_and_rates_are_shown():
    shown = limits.describe(read("--io-max-rbps", "/dev/vda:10M", "--io-max-wiops", "max"))
    assert shown == ["io-max-rbps /dev/vda 10 MiB/s", "io-max-wiops all disks max"]
