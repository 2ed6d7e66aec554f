"""Whether a W&B run goes online: the whole decision table, and what it reads."""

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from src.config import ConfigError
from src.tracking import mode
from src.tracking.mode import choose

HOST = "api.example.org"
SECRET = "0123456789abcdef" * 3


def decision(
    requested: str = "auto",
    environment: str = "",
    settings: str = "",
    credentials: str | None = None,
    answers: bool = True,
) -> tuple[str, str]:
    result = choose(
        requested,
        environment=environment,
        settings=settings,
        credentials=credentials,
        host=HOST,
        reachable=lambda: answers,
    )
    return result.mode, result.reason


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
    assert decision(settings="offline", credentials="x")[1] == "wandb settings file: mode=offline"
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
    ("case", "message"),
    [
        ({"requested": "of"}, "logger.mode=of is no mode of W&B; choose one of auto, online, offline, disabled"),
        (
            {"environment": "auto"},
            "WANDB_MODE=auto is no mode of W&B; choose one of online, offline, disabled, run, dryrun",
        ),
        (
            {"settings": "x"},
            "wandb settings file: mode=x is no mode of W&B; choose one of online, offline, disabled, run, dryrun",
        ),
    ],
)
def test_unknown_modes_are_refused(case: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        decision(**case)
    assert str(error.value) == message


def test_the_server_is_asked_only_when_it_matters() -> None:
    def never() -> bool:
        raise AssertionError("asked")

    for requested, environment, credentials in [("online", "", "key"), ("auto", "online", "key"), ("auto", "", None)]:
        choose(requested, environment=environment, settings="", credentials=credentials, host=HOST, reachable=never)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_credentials_are_found_where_wandb_looks_and_never_told(home: Path) -> None:
    find = mode.find_credentials
    assert find({}, {}, [HOST]) is None
    assert find({"WANDB_API_KEY": SECRET}, {}, [HOST]) == "WANDB_API_KEY"
    assert find({"WANDB_IDENTITY_TOKEN_FILE": "/token"}, {}, [HOST]) == "WANDB_IDENTITY_TOKEN_FILE"
    assert find({"WANDB_API_KEY": ""}, {}, [HOST]) is None
    assert find({}, {"api_key": SECRET}, [HOST]) == "wandb's settings file"
    (home / ".netrc").write_text(f"machine {HOST} login user password {SECRET}\n")
    (home / ".netrc").chmod(0o600)
    assert find({}, {}, [HOST]) == str(home / ".netrc")
    assert find({}, {}, ["other.example.org"]) is None
    assert find({}, {}, ["other.example.org", HOST]) == str(home / ".netrc")
    (home / "elsewhere").write_text("machine other.example.org login user password x\n")
    assert find({"NETRC": str(home / "elsewhere")}, {}, [HOST]) is None


def test_a_broken_netrc_is_named_and_does_not_stop_the_run(home: Path) -> None:
    (home / ".netrc").write_text("machine\n")
    with pytest.warns(UserWarning, match=r"\.netrc"):
        assert mode.find_credentials({}, {}, [HOST]) is None


def test_settings_files_of_the_user_and_of_the_working_folder(home: Path) -> None:
    (home / ".config" / "wandb").mkdir(parents=True)
    (home / ".config" / "wandb" / "settings").write_text(f"[default]\nmode = online\nbase_url = https://{HOST}\n")
    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nmode = offline\n")
    assert mode.read_settings({}) == {"mode": "offline", "base_url": f"https://{HOST}"}
    (home / "other").mkdir()
    (home / "other" / "settings").write_text("not an ini file\n")
    with pytest.warns(UserWarning, match="other/settings"):
        assert mode.read_settings({"WANDB_CONFIG_DIR": str(home / "other")}) == {"mode": "offline"}


def test_decide_puts_the_pieces_together(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    (home / ".netrc").chmod(0o600)
    asked: list[str] = []
    monkeypatch.setattr(mode, "reachable", lambda url: bool(asked.append(url)))
    # A key under the service's old name counts for the default server, and for no other.
    assert mode.decide("auto").reason.endswith("did not answer within 3 s") and len(asked) == 1
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.org:8080")
    assert mode.decide("auto").reason == "no credentials for wandb.example.org:8080: `wandb login` stores them"
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert mode.decide("auto").mode == "offline" and asked[1:] == ["http://wandb.example.org:8080"]


class Server(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        if self.status == 0:
            time.sleep(5)
            return
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "answer"), [(200, True), (404, True), (401, True), (500, False), (503, False), (0, False)]
)
def test_a_server_is_reachable_when_it_works(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, status: int, answer: bool
) -> None:
    monkeypatch.setattr(Server, "status", status)
    start = time.monotonic()
    assert mode.reachable(f"http://127.0.0.1:{server.server_port}", seconds=0.5) is answer
    assert time.monotonic() - start < 2


def test_a_closed_port_and_nonsense_are_not_reachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert mode.reachable(f"http://127.0.0.1:{unused.getsockname()[1]}") is False
    assert mode.reachable("no url") is False


def test_a_name_that_never_resolves_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        time.sleep(1.5)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    assert mode.reachable("http://wandb.example.org", seconds=0.3) is False
    assert time.monotonic() - start < 1
