"""Paths survive Hydra's grammar and OmegaConf's interpolation whatever they hold."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.config import ConfigError
from src.config.sources import PATH_KEYS, parse_override, quote_path, take_arguments

NASTY = st.text(alphabet=" =(),{}[]#'\"\\$:~+-*&!|%@`^/.aé漢\t\n", min_size=1)
PATHS = st.one_of(NASTY, st.text(min_size=1))
MEANT_FOR_HYDRA = re.compile(r"""null|'.*'|".*"|.*\$\{[^{}]+\}.*""", re.DOTALL)


def read(override: str) -> object:
    """The value after Hydra's grammar and OmegaConf's interpolation."""
    return OmegaConf.create({"path": parse_override(override).value()}).path


@settings(max_examples=60, deadline=None)
@given(path=PATHS.filter(lambda path: not MEANT_FOR_HYDRA.fullmatch(path)), key=st.sampled_from(sorted(PATH_KEYS)))
def test_any_path_is_read_as_it_is(path, key):
    assert read(f"{key}={path}") == path


@settings(max_examples=60, deadline=None)
@given(path=PATHS.filter(lambda path: "${" not in path))
def test_quoting_twice_is_quoting_once(path):
    once = quote_path(f"data.root={path}")
    assert quote_path(once) == once


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data.root=null", None),
        ("data.root=", ""),
        ("data.root='a b'", "a b"),
        ('data.root="a, b"', "a, b"),
        ("data.root=${oc.env:HOME_OF_DATA}/x", "/d/x"),
        ("data.root=${oc.env:HOME_OF_DATA}/a, (é)", "/d/a, (é)"),
        ("++data.root=a=b", "a=b"),
        ("data.root='it''s'", "'it''s'"),
        ("data.root=it's", "it's"),
        ("data.root=C:\\data\\", "C:\\data\\"),
        ("data.root=1e-3", "1e-3"),
        ("data.root=true", "true"),
    ],
)
def test_what_hydra_reads_is_left_to_it(typed, meant, monkeypatch):
    monkeypatch.setenv("HOME_OF_DATA", "/d")
    assert read(typed) == meant


def test_other_keys_are_not_touched():
    assert quote_path("model.net.hidden_sizes=[1,2]") == "model.net.hidden_sizes=[1,2]"
    assert quote_path("~data.root") == "~data.root"


def test_own_arguments_of_a_command():
    taken, rest = take_arguments(["ckpt=a=b (1).ckpt", "data.batch_size=3", "split=val"], ("ckpt", "split"))
    assert taken == {"ckpt": "a=b (1).ckpt", "split": "val"}
    assert rest == ["data.batch_size=3"]


def test_own_argument_with_a_brace_or_an_environment_variable(monkeypatch):
    monkeypatch.setenv("HOME_OF_RUNS", "/r")
    taken, _ = take_arguments(["ckpt=/a/${b", "resume=${oc.env:HOME_OF_RUNS}/x"], ("ckpt", "resume"))
    assert taken == {"ckpt": "/a/${b", "resume": "/r/x"}
    with pytest.raises(ConfigError, match=r"^ckpt=\$\{x\}: cannot be read \(Interpolation key 'x' not found\)"):
        take_arguments(["ckpt=${x}"], ("ckpt",))


def test_own_argument_that_cannot_be_read():
    with pytest.raises(ConfigError, match=r"^split=a,b: several values"):
        take_arguments(["split=a,b"], ("split",))
