"""What every test runs under: its own caches, no network, no display, and no silent skips."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

# Before any test module is imported: huggingface_hub and matplotlib read these on import.
_SANDBOX = Path(tempfile.mkdtemp(prefix="mlxroles-tests-"))
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "MLXROLES_PAIRS", "FORCE_COLOR", "NO_COLOR"):
    os.environ.pop(_name, None)
os.environ |= {
    "MLXROLES_CACHE": str(_SANDBOX / "cache"),
    "XDG_CONFIG_HOME": str(_SANDBOX / "config"),
    "HF_HOME": str(_SANDBOX / "huggingface"),
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
}

# A busy machine is no failure; and what decides about a change draws the same cases each time.
settings.register_profile("mlxroles", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mlxroles")


def pytest_unconfigure() -> None:
    shutil.rmtree(_SANDBOX, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="fail when a test was skipped for any reason that does not start with 'platform:'",
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not session.config.getoption("--no-skips"):
        return
    reasons = [str(report.longrepr[2]) for report in reporter.stats.get("skipped", [])]
    if any(not reason.removeprefix("Skipped: ").startswith("platform:") for reason in reasons):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """A test that opens a connection fails; local sockets of the operating system are fine."""
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family == getattr(socket, "AF_UNIX", None):
            return connect(self, address)
        raise RuntimeError(f"a test tried to reach {address}")

    def unknown(host, *_args, **_kwargs):
        raise RuntimeError(f"a test tried to look up {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", unknown)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference data and models beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("../shared (reference data and real models) is not beside this checkout")
    return SHARED


@pytest.fixture
def call(capsys):
    """Runs a command in this process: status, standard output, standard error."""
    from mlxroles import cli

    def run(*args):
        status = cli.run([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


@pytest.fixture(scope="session")
def zygote():
    """Starts commands as processes that begin at once."""
    from zygote import Zygote

    with Zygote() as started:
        yield started


@pytest.fixture(scope="session")
def tiny_run(zygote, tmp_path_factory):
    """The folder of an undisturbed `mlxroles patch --pair tiny`, without figures."""
    from zygote import NO_FIGURES, PATCH

    cwd = tmp_path_factory.mktemp("whole")
    status, _, err = zygote.run(*PATCH, "--out", "run", cwd=cwd, code=NO_FIGURES)
    assert status == 0, err
    return cwd / "run"


@pytest.fixture(autouse=True)
def no_estimates(request):
    """What a run says must not depend on what was planned before it."""
    if request.module.__name__.startswith(("test_faults_", "test_cli_watch")):
        for kept in ("rates", "runs"):
            (_SANDBOX / "cache" / f"{kept}.json").unlink(missing_ok=True)
