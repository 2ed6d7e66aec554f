"""Whether a W&B run goes online, decided without asking anybody and within three seconds.

`wandb` itself has no such mode: without a key it prompts in a terminal and raises elsewhere; with a key and no network
it blocks for minutes. So the sources that it would read are read here, in its order.
"""

import configparser
import http.client
import netrc
import os
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from src.config import ConfigError

Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
WANDB_MODES: dict[str, Mode] = {**MODES, "run": "online", "dryrun": "offline"}
REACH_SECONDS = 3.0


@dataclass(frozen=True)
class Decision:
    """The mode of a W&B run and, for the person, why."""

    mode: Mode
    reason: str


def decide(requested: str) -> Decision:
    """The mode for `logger.mode=requested` on this machine, now.

    Raises:
        ConfigError: `requested` or WANDB_MODE is no mode, or online is requested and there are no credentials.
    """
    import wandb

    default_url = wandb.Settings().base_url
    settings = read_settings(os.environ)
    url = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or default_url
    # A key of the hosted service is filed under its old name in many a netrc.
    hosts = [urlsplit(url).netloc, *(["api.wandb.ai"] if url == default_url else [])]
    return choose(
        requested,
        environment=os.environ.get("WANDB_MODE", ""),
        settings=settings.get("mode", ""),
        credentials=find_credentials(os.environ, settings, hosts),
        host=hosts[0],
        reachable=lambda: reachable(url),
    )


def choose(
    requested: str,
    *,
    environment: str,
    settings: str,
    credentials: str | None,
    host: str,
    reachable: Callable[[], bool],
) -> Decision:
    """The decision table; the first line that applies wins.

    Args:
        requested: `logger.mode`.
        environment: the value of WANDB_MODE, "" where unset.
        settings: `mode` of wandb's settings files, "" where unset.
        credentials: where they were found, None if nowhere.
        host: the W&B server.
        reachable: asked only when the answer matters, as it may take three seconds.

    Raises:
        ConfigError: see `decide`.
    """
    if requested != "auto":
        mode = _known("logger.mode", requested, MODES, "auto, online, offline, disabled")
        if mode == "online" and credentials is None:
            raise ConfigError(
                f"logger.mode=online needs credentials for {host}: run `wandb login`, set WANDB_API_KEY, "
                "or use logger.mode=auto, which stays offline until there are some"
            )
        return Decision(mode, f"logger.mode={requested}")
    reason = ""
    for source, value in (("WANDB_MODE", environment), ("wandb settings file: mode", settings)):
        if value:
            mode = _known(source, value, WANDB_MODES, ", ".join(WANDB_MODES))
            reason = f"{source}={value}"
            if mode != "online":
                return Decision(mode, reason)
            break
    if credentials is None:
        missing = f"no credentials for {host}: `wandb login` stores them"
        return Decision("offline", f"{reason}, but {missing}" if reason else missing)
    if reason:
        return Decision("online", reason)
    if not reachable():
        return Decision("offline", f"{host} did not answer within {REACH_SECONDS:.0f} s")
    return Decision("online", f"credentials from {credentials}")


def read_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings files of wandb: the user's, then that of the working folder, which wins."""
    folder = Path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    workspace = Path(".wandb") if Path(".wandb").exists() else Path("wandb")
    merged: dict[str, str] = {}
    for path in (folder / "settings", workspace / "settings"):
        parser = configparser.ConfigParser()
        try:
            parser.read(path)
            merged.update(parser.items("default") if parser.has_section("default") else ())
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            warnings.warn(f"settings of wandb are ignored: {path}: {error}", stacklevel=2)
    return merged


def find_credentials(environ: Mapping[str, str], settings: Mapping[str, str], hosts: list[str]) -> str | None:
    """Where wandb would find credentials for the first of `hosts` that has some; never what they are."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if environ.get(name):
            return name
    path = _netrc_path(environ)
    try:
        known = netrc.netrc(path)
        if any((entry := known.authenticators(host)) and entry[2] for host in hosts):
            return str(path)
    except FileNotFoundError:
        pass
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        warnings.warn(f"credentials for W&B are not looked for in {path}: {error}", stacklevel=2)
    return "wandb's settings file" if settings.get("api_key") else None


def reachable(url: str, seconds: float = REACH_SECONDS) -> bool:
    """Whether a working HTTP server answers at `url` within `seconds`.

    In a thread: looking a name up ignores every socket timeout, and may hang for a minute on a machine without network.
    """
    answered = threading.Event()

    def ask() -> None:
        if _answers(url, seconds):
            answered.set()

    thread = threading.Thread(target=ask, daemon=True, name="wandb-reachable")
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _answers(url: str, seconds: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except urllib.error.HTTPError as error:  # any answer of a working server will do, such as 404 at the root
        return error.code < 500
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _known(source: str, value: str, modes: Mapping[str, Mode], choices: str) -> Mode:
    if value not in modes:
        raise ConfigError(f"{source}={value} is no mode of W&B; choose one of {choices}")
    return modes[value]


def _netrc_path(environ: Mapping[str, str]) -> Path:
    if environ.get("NETRC"):
        return Path(environ["NETRC"]).expanduser()
    paths = [Path.home() / name for name in (".netrc", "_netrc")]
    return next((path for path in paths if path.exists()), paths[0])
