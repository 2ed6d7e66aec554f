"""Whether a W&B run goes online, decided without asking anybody and within three seconds.

wandb itself has no such mode: without a key it prompts in a terminal and raises elsewhere; with a key and no network it
blocks for minutes. So the sources that it would read are read here, in its order.
"""

import configparser
import functools
import http.client
import netrc
import os
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from src.config import ConfigError

Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {
    "online": "online", "offline": "offline", "disabled": "disabled", "run": "online", "dryrun": "offline",
}  # fmt: skip
REACH_SECONDS = 3.0


class Decision(NamedTuple):
    """The mode of a W&B run and, for the person, why."""

    mode: Mode
    reason: str


@functools.cache
def reachable(url: str, seconds: float = REACH_SECONDS) -> bool:
    """Whether a working HTTP server answers in time; asked once a process.

    In a thread: looking a name up ignores every socket timeout, and may hang for a minute on a machine without network.
    """
    working: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=seconds):
                working.append(True)
        except urllib.error.HTTPError as error:  # any answer of a working server will do, such as 404 at the root
            working.append(error.code < 500)
        except (OSError, ValueError, http.client.HTTPException):
            working.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return any(working)


def check_tracker(node: Mapping[str, Any]) -> None:
    """Checks the mode in the config of a `WandbTracker`, without the network.

    Raises:
        ConfigError: As `decide`.
    """
    decide(node.get("mode", "auto"), lambda url: True)


def decide(requested: str, reachable: Callable[[str], bool] = reachable) -> Decision:
    """The mode for ``logger.mode=requested`` on this machine, now.

    Raises:
        ConfigError: There is no such mode, online is requested without credentials, or a settings file is broken.
    """
    import wandb

    default_url = wandb.Settings().base_url
    settings = read_settings()
    url = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or default_url
    # A key of the hosted service is filed under its old name in many a netrc.
    hosts = [urlsplit(url).netloc, *(["api.wandb.ai"] if url == default_url else [])]
    said = {
        "logger.mode": "" if requested == "auto" else requested,
        "WANDB_MODE": os.environ.get("WANDB_MODE", ""),
        "mode in the settings of wandb": settings.get("mode", ""),
    }
    return choose(said, find_credentials(settings, hosts), hosts[0], lambda: reachable(url))


def choose(said: Mapping[str, str], credentials: str | None, host: str, reachable: Callable[[], bool]) -> Decision:
    """The decision table: of those in `said` who ask for a mode, the first counts; `credentials` is where they are."""
    source, word = next(((source, word) for source, word in said.items() if word), ("", "online"))
    if word not in MODES:
        raise ConfigError(f"{source}={word} is no mode of W&B; choose one of {', '.join(MODES)}")
    if MODES[word] != "online":
        return Decision(MODES[word], f"{source}={word}")
    if credentials is None and source == "logger.mode":
        raise ConfigError(
            f"logger.mode={word} needs credentials for {host}: run `wandb login`, set WANDB_API_KEY, "
            "or use logger.mode=auto, which stays offline until there are some"
        )
    if credentials is None:
        asked = f"{source}={word}, but " if source else ""
        return Decision("offline", f"{asked}no credentials for {host}: `wandb login` stores them")
    if source:
        return Decision("online", f"{source}={word}")
    if not reachable():
        return Decision("offline", f"{host} did not answer within {REACH_SECONDS:.0f} s")
    return Decision("online", f"credentials from {credentials}")


def read_settings() -> dict[str, str]:
    """The settings files of wandb: the user's, then that of the working folder, which wins.

    Raises:
        ConfigError: One is broken.
    """
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    here = Path(".wandb") if Path(".wandb").exists() else Path("wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([user / "settings", here / "settings"])
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"settings of wandb: {' '.join(str(error).split())}") from error
    return dict(parser["default"]) if parser.has_section("default") else {}


def find_credentials(settings: Mapping[str, str], hosts: list[str]) -> str | None:
    """Where wandb would find credentials for one of the hosts; never what they are."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(name):
            return name
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        entries = netrc.netrc(path).hosts if path.exists() else {}
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        warnings.warn(f"credentials for W&B are not looked for in {path}: {error}", stacklevel=2)
        entries = {}
    if any(host in entries and entries[host][2] for host in hosts):
        return str(path)
    return "the settings of wandb" if settings.get("api_key") else None
