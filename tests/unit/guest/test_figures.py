"""The table of figures names every limit."""

import json

from tests.guest.figures import Figure, complete, to_json, to_markdown

FILES = {"memory_max": "memory.max", "io_weight": "io.weight"}
MEASURED = Figure("io_weight", "io.weight", "100:400", "1:3.9", "holds")
ABSENT = Figure("io_weight", "io.bfq.weight", "", "needs BFQ", "absent")


def test_limit_without_a_figure_is_said_to_be_not_measured():
    missing, there = complete([MEASURED], FILES)

    assert (missing.limit, missing.file, missing.verdict) == (
        "memory_max",
        "memory.max",
        "not measured",
    )
    assert there == MEASURED


def test_absent_file_is_no_measurement_of_its_limit():
    assert [figure.verdict for figure in complete([ABSENT], FILES)][1:] == [
        "absent",
        "not measured",
    ]


def test_figure_of_something_else_comes_last():
    other = Figure("start", "", "", "1 s", "holds")

    assert complete([other, MEASURED], FILES)[-1] == other


def test_table_is_markdown_with_columns_that_line_up():
    assert to_markdown([MEASURED]).splitlines() == [
        "| limit     | file      | asked   | measured | verdict |",
        "|-----------|-----------|---------|----------|---------|",
        "| io_weight | io.weight | 100:400 | 1:3.9    | holds   |",
    ]


def test_json_has_the_figures_and_the_run():
    report = json.loads(to_json([MEASURED], {"kernel": "6.1"}))

    assert report["kernel"] == "6.1"
    assert report["figures"][0]["measured"] == "1:3.9"
