"""Whether a W&B run goes online: the whole decision table, and what it reads."""

import itertools
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from src.config import ConfigError, compose
from src.tracking import mode
from src.tracking.mode import check_tracker, choose

HOST = "api.example.org"
SECRET = "0123456789abcdef" * 3


def decision(
    requested: str = "auto",
    environment: str = "",
    settings: str = "",
    credentials: str | None = None,
    answers: bool = True,
) -> tuple[str, str]:
    result = choose(said(requested, environment, settings), credentials, HOST, lambda: answers)
    return result.mode, result.reason


def said(requested: str, environment: str, settings: str) -> dict[str, str]:
    asked = "" if requested == "auto" else requested
    return {"logger.mode": asked, "WANDB_MODE": environment, "mode in the settings of wandb": settings}


def expected(requested: str, environment: str, settings: str, credentials: str | None, answers: bool) -> str:
    """The rule in words: the first explicit word counts; online needs credentials; unasked, also an answer."""
    said = next((word for word in (requested if requested != "auto" else "", environment, settings) if word), "")
    if said in ("offline", "dryrun", "disabled"):
        return said.replace("dryrun", "offline")
    if requested == "online":
        return "online" if credentials else "refused"
    if not credentials:
        return "offline"
    return "online" if said or answers else "offline"


@pytest.mark.parametrize("requested", ["auto", "online", "offline", "disabled"])
def test_the_whole_table(requested: str) -> None:
    words = ["", "online", "run", "offline", "dryrun", "disabled"]
    for case in itertools.product([requested], words, words, [None, "WANDB_API_KEY"], [True, False]):
        try:
            outcome = decision(*case)[0]
        except ConfigError:
            outcome = "refused"
        assert outcome == expected(*case), case


def test_reasons() -> None:
    assert decision()[1] == f"no credentials for {HOST}: `wandb login` stores them"
    assert decision(credentials="WANDB_API_KEY") == ("online", "credentials from WANDB_API_KEY")
    assert decision(credentials="WANDB_API_KEY", answers=False) == ("offline", f"{HOST} did not answer within 3 s")
    assert decision("offline")[1] == "logger.mode=offline"
    assert decision(environment="dryrun", settings="online")[1] == "WANDB_MODE=dryrun"
    assert decision(settings="offline", credentials="x")[1] == "mode in the settings of wandb=offline"
    assert decision(environment="online")[1] == (
        f"WANDB_MODE=online, but no credentials for {HOST}: `wandb login` stores them"
    )


def test_online_without_credentials_says_what_to_do() -> None:
    with pytest.raises(ConfigError) as error:
        decision("online")
    assert str(error.value) == (
        f"logger.mode=online needs credentials for {HOST}: run `wandb login`, set WANDB_API_KEY, "
        "or use logger.mode=auto, which stays offline until there are some"
    )


@pytest.mark.parametrize(
    ("case", "source"),
    [
        ({"requested": "of"}, "logger.mode=of"),
        ({"environment": "auto"}, "WANDB_MODE=auto"),
        ({"settings": "x"}, "mode in the settings of wandb=x"),
    ],
)
def test_unknown_modes_are_refused(case: dict[str, str], source: str) -> None:
    with pytest.raises(ConfigError) as error:
        decision(**case)
    assert str(error.value) == f"{source} is no mode of W&B; choose one of online, offline, disabled, run, dryrun"


def test_the_server_is_asked_only_when_it_matters() -> None:
    def never() -> bool:
        raise AssertionError("asked")

    for requested, environment, credentials in [("online", "", "key"), ("auto", "online", "key"), ("auto", "", None)]:
        choose(said(requested, environment, ""), credentials, HOST, never)


@pytest.fixture(autouse=True)
def nothing_is_known_yet() -> None:
    mode.reachable.cache_clear()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_credentials_are_found_where_wandb_looks_and_never_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = mode.find_credentials
    assert find({}, [HOST]) is None
    assert find({"api_key": SECRET}, [HOST]) == "the settings of wandb"
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        with monkeypatch.context() as environment:
            environment.setenv(name, SECRET)
            assert find({}, [HOST]) == name
            environment.setenv(name, "")
            assert find({}, [HOST]) is None
    (home / ".netrc").write_text(f"machine {HOST} login user password {SECRET}\n")
    (home / ".netrc").chmod(0o600)
    assert find({}, [HOST]) == str(home / ".netrc")
    assert find({}, ["other.example.org"]) is None
    assert find({}, ["other.example.org", HOST]) == str(home / ".netrc")
    (home / "elsewhere").write_text("machine other.example.org login user password x\n")
    monkeypatch.setenv("NETRC", str(home / "elsewhere"))
    assert find({}, [HOST]) is None


def test_a_broken_netrc_is_named_and_does_not_stop_the_run(home: Path) -> None:
    (home / ".netrc").write_text("machine\n")
    with pytest.warns(UserWarning, match=r"\.netrc"):
        assert mode.find_credentials({}, [HOST]) is None


def test_settings_files_of_the_user_and_of_the_working_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".config" / "wandb").mkdir(parents=True)
    (home / ".config" / "wandb" / "settings").write_text(f"[default]\nmode = online\nbase_url = https://{HOST}/%20\n")
    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nmode = offline\n")
    assert mode.read_settings() == {"mode": "offline", "base_url": f"https://{HOST}/%20"}
    (home / "other").mkdir()
    (home / "other" / "settings").write_text("not an ini file\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home / "other"))
    with pytest.raises(ConfigError, match=r"settings of wandb: .*other/settings"):
        mode.read_settings()


def test_decide_puts_the_pieces_together(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    (home / ".netrc").chmod(0o600)
    asked: list[str] = []

    def unreachable(url: str) -> bool:
        return bool(asked.append(url))

    # A key under the service's old name counts for the default server, and for no other.
    assert mode.decide("auto", unreachable).reason.endswith("did not answer within 3 s") and len(asked) == 1
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.org:8080")
    reason = "no credentials for wandb.example.org:8080: `wandb login` stores them"
    assert mode.decide("auto", unreachable).reason == reason
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert mode.decide("auto", unreachable).mode == "offline" and asked[1:] == ["http://wandb.example.org:8080"]


def test_a_tracker_is_checked_without_the_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr("urllib.request.urlopen", never)
    monkeypatch.setattr(threading, "Thread", never)
    with pytest.raises(ConfigError, match=r"logger\.mode=online needs credentials"):
        check_tracker({"mode": "online"})
    check_tracker({})
    check_tracker({"mode": "offline"})
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    check_tracker({"mode": "auto"})
    check_tracker({"mode": "online"})
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(ConfigError, match="WANDB_MODE=of is no mode"):
        check_tracker({"mode": "auto"})


def test_a_misspelt_mode_is_found_with_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"logger\.mode=ofline: .*offline"):
        compose(["logger.mode=ofline"])


def test_the_check_is_imported_without_wandb_lightning_and_torch() -> None:
    probe = "import sys; import src.tracking.mode; sys.exit(bool({'wandb', 'lightning', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], cwd=Path(__file__).parents[2]).returncode == 0


class Server(BaseHTTPRequestHandler):
    status = 200
    asked = 0
    released = threading.Event()

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.status == 0:
            self.released.wait()  # who waits for the answer waits until the test is over
            return
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(Server, "released", threading.Event())
    yield server
    Server.released.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "answer"), [(200, True), (404, True), (401, True), (500, False), (503, False), (0, False)]
)
def test_a_server_is_reachable_when_it_works(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, status: int, answer: bool
) -> None:
    monkeypatch.setattr(Server, "status", status)
    monkeypatch.setattr(Server, "asked", 0)
    url = f"http://127.0.0.1:{server.server_port}"
    assert mode.reachable(url, 0.5) is answer and mode.reachable(url, 0.5) is answer
    assert Server.asked == 1, "asked once a process"


def test_a_closed_port_and_nonsense_are_not_reachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert mode.reachable(f"http://127.0.0.1:{unused.getsockname()[1]}") is False
    assert mode.reachable("no url") is False


def test_a_name_that_never_resolves_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait()
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert mode.reachable("http://wandb.example.org", seconds=0.2) is False
    released.set()
