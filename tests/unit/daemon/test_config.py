import pytest

from jobworker.auth.policy import Policy, Role
from jobworker.daemon.config import read
from jobworker.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "jobworker.toml"
        path.write_text(text)
        return path

    return write


def test_a_file_gives_defaults_for_the_flags(write):
    file = read(write('listen = "0.0.0.0:1"\nlog-dir = "/logs"'))
    assert file.defaults() == {"listen": "0.0.0.0:1", "log_dir": "/logs"}


def test_a_relative_path_is_relative_to_the_file(write, tmp_path):
    file = read(write('log-dir = "log"\ncert = "../certs/jobworker.crt"\nlisten = "localhost"'))
    assert file.defaults() == {
        "log_dir": f"{tmp_path}/log",
        "cert": f"{tmp_path}/../certs/jobworker.crt",
        "listen": "localhost",
    }


def test_the_word_for_the_servers_own_cgroup_is_no_path(write):
    assert read(write('cgroup-root = "own"')).defaults() == {"cgroup_root": "own"}


def test_a_bound_may_be_a_bare_number(write):
    file = read(write('keep-jobs = 500\nkeep-for = "90d"\nmax-running-jobs = 8'))
    assert file.defaults() == {"keep_jobs": "500", "keep_for": "90d", "max_running_jobs": "8"}


def test_an_empty_file_leaves_the_seeds_users(write):
    assert read(write("")).policy() == Policy()


def test_users_in_the_file_replace_the_seeds(write):
    policy = read(write('[users]\ncharlie = ["query"]')).policy()
    assert policy.users == {"charlie": frozenset({Role.QUERY})}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("listne = 'x'", "there is no setting 'listne'; did you mean listen"),
        ("quux = 'x'", "there is no setting 'quux'; there are: listen, cert,"),
        ("listen = 5", "listen must be a string"),
        ("keep-jobs = true", "keep-jobs must be a whole number or a string"),
        ("keep-for = 1.5", "keep-for must be a whole number or a string"),
        ("log-dir = ''", "log-dir must be a string that is not empty"),
        ("users = 'charlie'", "users must be a table"),
        ("listen = ", "Invalid value"),
        (
            "[users]\ncharlie = 'query'",
            r'users: charlie must have a list of roles, such as \["query"\]',
        ),
    ],
)
def test_a_mistake_is_named_with_the_file(write, text, named):
    with pytest.raises(ConfigError, match=rf"jobworker\.toml.*({named})"):
        read(write(text))


def test_an_unknown_role_is_named_with_the_file(write):
    with pytest.raises(ConfigError, match=r"jobworker\.toml: .*'admin'"):
        read(write('[users]\ncharlie = ["admin"]')).policy()


def test_a_file_that_was_asked_for_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "missing.toml")
