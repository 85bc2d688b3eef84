"""Only a whole report of a guest that came to a good end counts."""

import io
import tarfile

import pytest

from guest.failure import GuestFailed
from guest.outcome import LINES_SHOWN, Ended, Report, judge

PANIC = "[    3.009899] Kernel panic - not syncing: sysrq triggered crash\n"


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


WHOLE = archive({"output/guest.xml": b"<testsuites/>", "status": b"3\n"})


def test_report_has_the_status_and_the_files():
    assert judge(Ended(0, "fine"), WHOLE) == Report(3, {"guest.xml": b"<testsuites/>"})


def test_names_in_a_report_lead_nowhere_else():
    report = judge(Ended(0, ""), archive({"output/../../etc/passwd": b"x", "status": b"0"}))

    assert report.files == {"passwd": b"x"}


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense" * 200, WHOLE[:600], WHOLE[:1000], archive({"output/guest.xml": b"x"})],
    ids=["nothing", "no archive", "cut in a file", "cut in a header", "no status"],
)
def test_report_that_is_not_whole_is_a_failure(content):
    with pytest.raises(GuestFailed, match="without a whole report"):
        judge(Ended(0, ""), content)


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        (Ended(0, PANIC), "panicked: Kernel panic - not syncing: sysrq triggered crash"),
        (Ended(-9, "", stopped_after=60.0), "had not ended after 60 s"),
        (Ended(1, "qemu: no such option\n"), "QEMU ended with status 1"),
    ],
)
def test_bad_end_is_a_failure_even_with_a_report(ended, problem):
    with pytest.raises(GuestFailed, match=problem):
        judge(ended, WHOLE)


def test_failure_shows_the_end_of_the_console():
    console = "".join(f"line {number}\n" for number in range(1000))

    with pytest.raises(GuestFailed) as caught:
        judge(Ended(0, console), b"")

    shown = str(caught.value).splitlines()[1:]
    assert shown == [f"  | line {number}" for number in range(1000 - LINES_SHOWN, 1000)]


def test_panic_is_shown_with_what_led_to_it():
    console = "the last words\n" + PANIC + "trace\n" * 1000

    with pytest.raises(GuestFailed) as caught:
        judge(Ended(0, console), b"")

    _, words, panic, *trace = str(caught.value).splitlines()
    assert (words, panic) == ("  | the last words", f"  | {PANIC.rstrip()}")
    assert trace == ["  | trace"] * (LINES_SHOWN - 1)


def test_output_that_speaks_of_a_panic_is_none():
    assert judge(Ended(0, f"> {PANIC}"), WHOLE).status == 3
