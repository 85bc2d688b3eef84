from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobworker.text import join, printable, quote

BASH = shutil.which("bash")


def test_ordinary_words_stay_as_they_are():
    assert join(["tar", "cf", "/tmp/a.tar"]) == "tar cf /tmp/a.tar"


def test_what_a_shell_would_divide_is_quoted():
    assert (
        join(["sh", "-c", "echo a; echo b", "", "it's"])
        == """sh -c 'echo a; echo b' '' 'it'"'"'s'"""
    )


def test_letters_of_every_language_are_printable():
    assert printable("größe 日本 🎈") == "größe 日本 🎈"


@given(st.text())
def test_nothing_that_a_terminal_obeys_comes_through(text):
    assert printable(text).isprintable()
    assert quote(text).isprintable()


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "a\nb", "a\tb'c\\d\x07", "\u202e", "\U000e0001x", "é\x7f"]
)
def test_bash_reads_a_quoted_argument_back(text):
    assert BASH is not None
    command = [BASH, "-c", f"printf %s {quote(text)}"]
    environment = {"LC_ALL": "C.UTF-8"}
    shown = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    assert shown.decode() == text
