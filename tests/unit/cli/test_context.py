from __future__ import annotations

from pathlib import Path

import pytest

from jobworker.cli.context import config_path, load, resolve
from jobworker.errors import ConfigError

NOTHING = {"url": None, "cert": None, "key": None, "ca": None}
FILES = {"cert": "/a.crt", "key": "/a.key", "ca": "/ca.crt"}

CONFIG = """
current = "lab"

[contexts.lab]
url = "lab.example.org:1"
cert = "/lab.crt"
key = "lab.key"
ca = "~/ca.crt"

[contexts.away]
url = "away.example.org"
"""


@pytest.fixture
def environ(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("HOME", "/home/me")
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "jobworker" / "config.toml"
    path.parent.mkdir()
    path.write_text(CONFIG, encoding="utf-8")
    return path


def test_without_a_url_the_server_is_local(environ):
    assert resolve(NOTHING | FILES, None, environ).url == "localhost:50051"


def test_the_current_context_completes_what_is_missing(environ, config):
    connection = resolve(NOTHING | {"cert": "/mine.crt"}, None, environ)
    assert connection.url == "lab.example.org:1"
    assert connection.cert == Path("/mine.crt")
    assert connection.key == config.parent / "lab.key"
    assert connection.ca == Path("/home/me/ca.crt")


def test_a_context_is_chosen_by_name(environ, config):
    assert resolve(NOTHING | FILES, "away", environ).url == "away.example.org"


def test_a_flag_comes_before_the_context_that_was_chosen(environ, config):
    assert resolve(NOTHING | FILES | {"url": "flag"}, "away", environ).url == "flag"


def test_the_file_is_not_read_if_nothing_is_missing(environ, config):
    config.write_text("broken", encoding="utf-8")
    assert resolve(FILES | {"url": "x"}, None, environ).url == "x"


def test_a_tilde_is_the_home_directory(environ):
    given = NOTHING | FILES | {"key": "~/a.key"}
    assert resolve(given, None, environ).key == Path("/home/me/a.key")


@pytest.mark.parametrize("name", ["cert", "key", "ca"])
def test_a_missing_file_names_flag_variable_and_configuration(environ, name):
    with pytest.raises(ConfigError) as error:
        resolve(NOTHING | FILES | {name: None}, None, environ)
    for hint in (f"--{name} FILE", f"JOBWORKER_{name.upper()}", "config.toml"):
        assert hint in str(error.value)


def test_an_unknown_context_is_named_with_those_that_there_are(config):
    with pytest.raises(ConfigError, match="no context 'nope'; it has away, lab"):
        load(config, "nope")


def test_a_context_without_a_file_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"cannot use the context 'lab': there is no .*none\.toml"
    ):
        load(tmp_path / "none.toml", "lab")


def test_contexts_of_which_none_is_chosen_are_named(environ, config):
    config.write_text("[contexts.lab]\nurl = 'x'\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no context is chosen; .* --context \(there is: lab\)"):
        resolve(NOTHING, None, environ)
    assert resolve(NOTHING | FILES, None, environ).cert, "flags do without"


def test_a_relative_path_is_made_absolute(environ, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve(NOTHING | FILES | {"key": "me.key"}, None, environ).key == tmp_path / "me.key"


def test_no_file_and_no_context_is_nothing(tmp_path):
    assert load(tmp_path / "none.toml", None) == {}


def test_a_file_without_a_current_context_is_nothing(config):
    config.write_text("[contexts.lab]\nurl = 'x'\n", encoding="utf-8")
    assert load(config, None) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\ncurrent = x", "line 2"),
        ("current = 'lab'\n[contexts.lab]\nurls = 'x'", "unknown key 'urls'"),
        ("current = 'lab'\n[contexts.lab]\nurl = 1", "url must be a string"),
        ("current = 'lab'\n[contexts]\nlab = 1", "must be a table"),
        ("current = 'lab'\ncontexts = 1", "no context 'lab'"),
        ("current = 1", "no context 1"),
        ("current = 'lab'", "it has none"),
        ("curent = 'lab'", "unknown key 'curent'; known are current, contexts"),
    ],
)
def test_a_broken_file_is_named_with_the_problem(config, text, problem):
    config.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load(config, None)
    assert str(config) in str(error.value)
    assert problem in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, None)


def test_bytes_that_are_no_text_are_an_error(config):
    config.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"cannot read .*config\.toml"):
        load(config, None)


def test_the_file_is_below_dot_config_by_default(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert config_path({}) == Path("/home/me/.config/jobworker/config.toml")


def test_a_relative_xdg_directory_is_ignored(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    relative = config_path({"XDG_CONFIG_HOME": "here"})
    assert relative == Path("/home/me/.config/jobworker/config.toml")
