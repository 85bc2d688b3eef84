"""From the limits in force to others: what to write, in which order, and what undoes it. Pure.

The kernel judges each write by what is in force at that moment, so the order matters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from jobworker.cgroups import parse
from jobworker.cgroups.limits import MAX_CPU_TIME, Limits, Setting
from jobworker.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

JUDGED_BY: Final = ("cpu.max",)
"""Files that say whether a write to another one can succeed."""

_EARLY: Final = 0
_USUAL: Final = 1
_LAST: Final = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One write, and the one that brings back what was there before it."""

    setting: Setting
    undo: Setting


def given(limits: Limits) -> dict[str, Any]:
    """Return the limits that are set, by name."""
    values = {field.name: getattr(limits, field.name) for field in fields(limits)}
    return {name: value for name, value in values.items() if value not in (None, ())}


def merged(before: Limits, wanted: Limits) -> Limits:
    """Return the limits there would be: what is not given stays.

    For devices the new values stand for the old ones, because advice does not depend on them.
    """
    return replace(before, **given(wanted))


def check(before: Limits, wanted: Limits) -> None:
    """Raise InvalidArgument if no kernel could take the limits `wanted` in place of `before`.

    Quota and burst are judged together, whichever of them is given; all else speaks for itself.
    """
    if not given(wanted):
        raise InvalidArgument("limits", "nothing to change: give at least one limit")
    together = wanted
    if wanted.cpu_max is not None or wanted.cpu_burst_max is not None:
        after = merged(before, wanted)
        together = replace(wanted, cpu_max=after.cpu_max, cpu_burst_max=after.cpu_burst_max)
    try:
        together.check()
    except InvalidArgument as error:
        if wanted == together:
            raise
        in_force = "quota" if wanted.cpu_max is None else "burst"
        problem = f"{error.problem} (the {in_force} is the one in force, and stays unless given)"
        raise InvalidArgument(error.field, problem) from error


def plan(wanted: Iterable[Setting], contents: Mapping[str, str]) -> tuple[Step, ...]:
    """Return the writes in an order in which each of them can succeed.

    `contents` is what the files of the settings and those of `JUDGED_BY` say now. The writes that
    undo, in the opposite order, can succeed as well: they lead through the same states back.
    Raises MalformedText.

    The kernel refuses a quota below the burst and a burst above the quota. memory.max comes first
    where it gives room, and last where it takes room away: what the kernel kills for it
    (cgroup-v2.rst, "memory.max") no undoing brings back.
    """
    steps = [Step(setting, former(setting, contents[setting.file])) for setting in wanted]
    return tuple(sorted(steps, key=lambda step: _rank(step, contents)))


def former(setting: Setting, content: str) -> Setting:
    """Return the setting that brings back what a file's `content` says of this one."""
    if setting.file == "io.max":
        device, key = _device_and_key(setting)
        number = parse.nested_keyed(content, setting.file).get(device, {}).get(key, "max")
        text = f"{device} {key}={number}"
    elif setting.limit == "io_weight":
        text = f"default {parse.default_weight(content, setting.file)}"
    else:
        text = content.strip()
    return replace(setting, text=text)


def _device_and_key(setting: Setting) -> tuple[str, str]:
    ((device, entry),) = parse.nested_keyed(setting.text, setting.file).items()
    (key,) = entry
    return device, key


def _rank(step: Step, contents: Mapping[str, str]) -> int:
    """Return when a step is due; among equals, the order of `limits.TABLE` stands."""
    setting = step.setting
    if setting.file == "memory.max":
        rises = _number(setting) >= _number(step.undo)
        return _EARLY if rises else _LAST
    if setting.file == "cpu.max.burst":
        quota, _ = parse.cpu_max(contents["cpu.max"], "cpu.max")
        return _EARLY if _burst_fits(_number(setting), quota) else _USUAL
    return _USUAL


def _number(setting: Setting) -> int:
    return parse.value(setting.text, setting.file)


def _burst_fits(burst: int, quota: int) -> bool:
    """Tell whether the kernel takes a burst while a quota is in force.

    If it does not, it takes the new quota while the old burst is in force: were both refused, the
    new pair or the old one would not be a possible one (tg_set_cfs_bandwidth in
    kernel/sched/core.c).
    """
    return quota == parse.MAX or (burst <= quota and burst + quota <= MAX_CPU_TIME)
