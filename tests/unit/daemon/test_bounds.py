import click
import pytest
from click.testing import CliRunner

from jobworker import program
from jobworker.daemon import bounds, config, main
from jobworker.job.retention import Retention
from jobworker.job.slots import RunningLimits


@pytest.fixture
def told(monkeypatch):
    """Run ``serve`` with these arguments; return what it would have been told."""

    def told(*arguments, **environ):
        given = {}

        @click.command()
        @main._settings
        @main._bounds
        def serve(**values):
            given.update(values)

        result = CliRunner().invoke(serve, arguments, env=environ, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return bounds.take_retention(given), bounds.take_running_limits(given)

    return told


def test_what_nobody_has_said_is_the_librarys_default(told, tmp_path):
    (tmp_path / "empty").touch()
    assert told(f"--config={tmp_path}/empty") == (Retention(), RunningLimits())


def test_flag_environment_and_file_say_it_in_this_order(told, tmp_path):
    path = tmp_path / "jobworker.toml"
    path.write_text('keep-for = "1d"\nkeep-jobs = 7\nkeep-bytes = "1G"\nmax-running-jobs = 9')
    retention, running = told(
        f"--config={path}", "--keep-for=2h", JOBWORKER_KEEP_FOR="3h", JOBWORKER_KEEP_JOBS="2k"
    )
    assert retention == Retention(keep_for=7200.0, keep_jobs=2000, keep_bytes=1 << 30)
    assert running == RunningLimits(total=9)


@pytest.mark.parametrize("word", ["none", "max"])
def test_a_word_switches_each_off(told, tmp_path, word):
    (tmp_path / "empty").touch()
    flags = [f"{flag}={word}" for flag in bounds.FLAGS]
    retention, running = told(f"--config={tmp_path}/empty", *flags)
    assert retention == Retention(keep_for=None, keep_jobs=None, keep_bytes=None)
    assert running == RunningLimits(total=None, per_user=None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64K", 65536), ("1G", 1 << 30), ("none", None), ("max", None), ("9000P", None)],
)
def test_a_cap_on_outputs_is_a_size_or_none(text, size):
    assert bounds.CAP.convert(text, None, None) == size


def test_a_cap_that_jobs_could_not_ask_for_is_refused():
    with pytest.raises(click.BadParameter, match="'1K' is too little; give 64K or more, or none"):
        bounds.CAP.convert("1K", None, None)


def test_the_limit_for_each_user_is_one_of_its_own(told, tmp_path):
    (tmp_path / "empty").touch()
    _, running = told(f"--config={tmp_path}/empty", "--max-running-jobs-per-user=4")
    assert running == RunningLimits(total=None, per_user=4)


@pytest.mark.parametrize("flag", bounds.FLAGS)
@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
@pytest.mark.parametrize("command", ["serve", "check"])
def test_what_cannot_be_a_bound_is_wrong_usage_and_names_the_word_for_none(
    command, flag, value, capsys
):
    assert program.run(main.cli, "jobworker", [command, f"{flag}={value}"]) == 2
    said = capsys.readouterr().err
    assert flag in said
    assert "none means no bound" in said


@pytest.mark.parametrize("command", ["serve", "check"])
def test_what_cannot_be_a_bound_names_the_place_where_it_was_written(
    command, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "jobworker.toml"
    path.write_text('keep-for = "soon"')
    assert program.run(main.cli, "jobworker", [command, f"--config={path}"]) == 2
    assert f"Invalid value for keep-for in {path}: " in capsys.readouterr().err
    monkeypatch.setenv("JOBWORKER_KEEP_FOR", "later")
    assert program.run(main.cli, "jobworker", [command, f"--config={path}"]) == 2
    said = capsys.readouterr().err
    assert "Invalid value for JOBWORKER_KEEP_FOR in the environment: " in said
    assert str(path) not in said


def test_each_of_them_can_be_said_in_the_file():
    assert {flag.removeprefix("--") for flag in bounds.FLAGS} <= set(config.SETTINGS)
