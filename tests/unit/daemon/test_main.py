import pytest
from click.testing import CliRunner

from jobworker.daemon import main
from jobworker.job import service


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["check", "--help"]])
def test_the_defaults_shown_are_those_of_the_library(arguments):
    shown = CliRunner().invoke(main.cli, arguments).output
    for name in ("LOG_DIR", "STATE_DIR", "RUN_DIR", "CGROUP_ROOT"):
        assert f"default: {getattr(service, f'DEFAULT_{name}')}]" in shown


def test_the_program_calls_itself_jobworker_however_it_was_started(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/x/__main__.py", "--help"])
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().out.startswith("Usage: jobworker ")
