"""What a sweep tries, and what is said of one that is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from src.config import ConfigError
from src.config.sources import ConfigFolder
from src.search import space
from src.search.space import as_overrides, check_points, distributions, grid, read_grid, read_sweep
from tests.conftest import ROOT

SHIPPED = sorted(path.stem for path in (ROOT / "configs/sweep").glob("*.yaml"))


def points(*words: str) -> list[list[str]]:
    return [as_overrides(point) for point in grid(distributions(read_grid({}, words)["space"]))]


def test_a_grid_is_the_product_in_order() -> None:
    assert points("experiment=mnist_linear", "optimizer.lr=0.1,1e-2", "seed=1,2", "test=false") == [
        ["optimizer.lr=0.1", "seed=1"],
        ["optimizer.lr=0.1", "seed=2"],
        ["optimizer.lr=0.01", "seed=1"],
        ["optimizer.lr=0.01", "seed=2"],
    ]
    assert read_grid({}, ["test=false", "seed=1,2"])["overrides"] == ["test=false"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("model=linear,mlp", ["linear", "mlp"]),
        ("+optimizer.foreach=null,true", ["null", "true"]),
        ("tags=[a,b],['c,d']", ["[a, b]", "['c,d']"]),
        ("notes2='a, b','it\\'s = (1)',c", ["'a, b'", "'it\\'s = (1)'", "c"]),
        ("x='1','null',-1,1e-5", ["'1'", "'null'", "-1", "1.0e-05"]),
    ],
)
def test_values_are_written_so_that_they_are_read_back(word: str, values: list[str]) -> None:
    key = word.partition("=")[0]
    assert points(word) == [[f"{key}={value}"] for value in values]
    once = read_grid({}, [word])["space"][key]
    again = read_grid({}, [f"{key}={','.join(values)}"])["space"][key]
    assert once == again


@pytest.mark.parametrize(
    "word", ["notes=a,b", "data.root=/a,b", "model.net.hidden_sizes=[1,2]", "optimizer.lr='0.1,0.2'", "x={a:1,b:2}"]
)
def test_commas_that_are_no_sweep(word: str) -> None:
    sweep = read_grid({}, [word, "seed=1,2"])
    assert (list(sweep["space"]), sweep["overrides"]) == (["seed"], [word])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["seed=1"],
            "nothing to sweep over: give a key several values, optimizer.lr=0.1,0.2, or choose a file of "
            f"configs/sweep/ by sweep=NAME; choices: {', '.join(SHIPPED)}",
        ),
        (
            ["optimizer.lr=interval(0,1)"],
            "optimizer.lr=interval(0,1): values are written key=a,b or key=range(1,4); an interval needs a sweep=NAME",
        ),
        (
            ["model=glob(*)"],
            "model=glob(*): values are written key=a,b or key=range(1,4); an interval needs a sweep=NAME",
        ),
    ],
)
def test_no_grid(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_grid({}, words)
    assert str(caught.value) == message


def test_seeds_alone_are_a_grid_of_one_point() -> None:
    sweep = read_grid({"seeds": [1, 2]}, ["test=false"])
    assert grid(distributions(sweep["space"])) == [{}]


Read = Callable[..., dict[str, object]]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Reads a text as configs/sweep/mine.yaml."""
    (tmp_path / "configs/sweep").mkdir(parents=True)
    monkeypatch.setattr(space, "ConfigFolder", lambda: ConfigFolder(tmp_path / "configs"))

    def reader(text: str, **own: object) -> dict[str, object]:
        (tmp_path / "configs/sweep/mine.yaml").write_text(text, encoding="utf-8")
        return read_sweep("mine", own, ["seed=3"])

    return reader


def test_a_file_for_slurm_begins_with_the_clusters_defaults(read: Read, tmp_path: Path) -> None:
    (tmp_path / "configs/cluster").mkdir()
    (tmp_path / "configs/cluster/default.yaml").write_text("{time: '04:00:00', partition: cpu, memory: 1G}")
    text = "space: {seed: [1, 2]}\nsampler: grid\ncluster: {memory: 2G, gpus: 1}\n"
    read(f"{text}launcher: slurm\n")
    own, rest, is_dry = space.read_cluster("mine", {"dry_run": True}, ["cluster.gpus=2", "seed=3"])
    expected = {"time": "04:00:00", "partition": "cpu", "memory": "2G", "gpus": 2}
    assert (own, rest, is_dry) == ({"cluster": expected}, ["seed=3"], True)
    read(text)
    with pytest.raises(ConfigError, match=r"cluster\.gpus: is for launcher=slurm"):
        space.read_cluster("mine", {}, ["cluster.gpus=2"])


def test_a_file_is_completed_and_the_command_line_goes_before_it(read: Read) -> None:
    text = "n_trials: 3\npruner: median\noverrides: [test=false]\n"
    assert read(f"{text}space:\n  optimizer.lr: {{low: 1e-4, high: 1e-1, log: true}}\n", n_trials=5) == {
        "space": {"optimizer.lr": {"low": 1e-4, "high": 0.1, "log": True}},
        "overrides": ["test=false", "seed=3"],
        "sampler": "tpe",
        "pruner": "median",
        "n_trials": 5,
        "n_jobs": 1,
        "seeds": [],
        "launcher": "local",
        "cluster": dict.fromkeys(("partition", "account", "time", "memory", "gpus", "cpus_per_task")),
    }


def test_whole_numbers_steps_and_choices_as_a_grid(read: Read) -> None:
    sweep = read(
        "sampler: grid\nspace:\n  a: {low: 1, high: 5, step: 2}\n  b: {low: 0.0, high: 0.2, step: 0.1}\n  c: [x, 1]\n"
    )
    values = grid(distributions(sweep["space"]))  # type: ignore[arg-type]
    assert [point["a"] for point in values[::6]] == [1, 3, 5]
    assert [point["b"] for point in values[:6:2]] == [0.0, 0.1, 0.2]
    assert {point["c"] for point in values} == {"x", "1"} and len(values) == 18


def test_numbers_that_are_alike_are_no_repetition(read: Read) -> None:
    """One batch, and all of them."""
    assert len(points("trainer.limit_train_batches=1,1.0")) == 2 and len(points("x=1,'1',true")) == 3
    sweep = read("sampler: grid\nspace:\n  a: {low: 1, high: 3, step: null}\n")
    assert grid(distributions(sweep["space"])) == [{"a": 1}, {"a": 2}, {"a": 3}]  # type: ignore[arg-type]


NO_FILE = "space: {seed: [1, 2]}"
MISTAKES = {  # after the name of the file
    "n_trails: 3\nspace: {seed: [1]}\nsampler: grid": ":1: n_trails: there is no such key; did you mean n_trials?",
    "n_trials: 3": ": space: missing",
    NO_FILE: "n_trials=N: say how many trials there are to be",
    "space: 3\nn_trials: 3": ":1: space: expected dict[str, Any], got 3",
    "n_trials: few\nspace: {a: [1]}": ":1: n_trials: expected int or null, got few",
    "n_trials: 0\nspace: {a: [1]}": ":1: n_trials: must be at least 1, not 0",
    "sampler: bayes\nn_trials: 1\nspace: {a: [1]}": ":1: sampler: expected tpe or random or grid, got bayes",
    "seeds: [a]\nn_trials: 1\nspace: {a: [1]}": ":1: seeds: expected list[int], got [a]",
    "n_trials: 1\nspace:\n  a: 3": ":3: space.a: expected a list of values, or low and high, got 3",
    "n_trials: 1\nspace:\n  a: {low: 1}": ":3: space.a.high: missing",
    "n_trials: 1\nspace:\n  a: {low: x, high: 2}": ":3: space.a.low: expected float, got x",
    "n_trials: 1\nspace:\n  a: {lo: 1, low: 1, high: 2}": ":3: space.a.lo: there is no such key; did you mean low?",
    "sampler: grid\nspace:\n  a: {low: 0.0, high: 1}": ":3: space.a: a grid needs a list of values, or a step",
    "a: [": ":2: not valid YAML: expected the node content, but found '<stream end>' (while parsing a flow node)",
    "n_trials: 1\nspace:\n  a: [1, x, 1, 1]": ":3: space.a: 1 is given twice",
    "n_trials: 1\nseeds: [3, 3]\nspace: {a: [1]}": ":2: seeds: 3 is given twice",
    "sampler: grid\nspace:\n  a: {low: 0.0, high: 1, step: null}": (
        ":3: space.a: a grid needs a list of values, or a step"
    ),
    "n_trials: 1\nspace: {a: [1]}\ncluster: big": (
        ":3: cluster: expected the keys of a file of configs/cluster/, got big"
    ),
    "1: 2\nn_trials: 1\nspace: {a: [1]}": (
        ":1: 1: there is no such key; choices: space, overrides, sampler, pruner, n_trials, n_jobs, seeds, launcher, "
        "cluster"
    ),
    "- a": ": expected key: value lines, found a list",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_in_a_file(text: str, read: Read) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text + "\n")
    assert str(caught.value) == (MISTAKES[text] if text == NO_FILE else f"configs/sweep/mine.yaml{MISTAKES[text]}")


@pytest.mark.parametrize("interval", ["low: 2, high: 1", "low: 0, high: 1, log: true", "low: 0, high: 1, step: 0"])
def test_what_optuna_refuses_itself(interval: str, read: Read) -> None:
    with pytest.raises(ConfigError, match=r"^configs/sweep/mine.yaml:3: space.a: .*(low|step)"):
        read(f"n_trials: 1\nspace:\n  a: {{{interval}}}\n")


def test_all_mistakes_are_told_at_once_and_there_is_no_such_file(read: Read) -> None:
    with pytest.raises(ConfigError) as caught:
        read("n_trials: 0\npruner: x\nspace: {a: 1, b: {low: 3, high: 1}}\n")
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match=r"sweep=min: there is no sweep called min; did you mean mine\?"):
        read_sweep("min", {}, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optimizer.lrr=0.1,0.2"],
            "optimizer.lrr=0.1: torch.optim.Adam has no argument lrr; did you mean optimizer.lr?\n"
            "optimizer.lrr=0.2: torch.optim.Adam has no argument lrr; did you mean optimizer.lr?",
        ),
        (["optimizer.lr=0.1,-1"], "optimizer.lr=-1: must be above 0, not -1"),
        (["model=linear,mpl"], "model=mpl: there is no model called mpl; did you mean mlp?"),
        (["seed=1,2", "seed=3"], "seed: this sweep varies it, and it is given twice"),
        (["seed=1,2", "seed=3,4"], "seed: this sweep varies it, and it is given twice"),
        (["seed=1,2", "seed=1,2"], "seed: this sweep varies it, and it is given twice"),
        (["+seed=1,2", "seed=3"], "seed: this sweep varies it, and it is given twice"),
        (["seed=1,1"], "seed: 1 is given twice"),
        (["optimizer.lr=0.1,0.2,1e-1", "model=mlp,mlp"], "optimizer.lr: 0.1 is given twice\nmodel: mlp is given twice"),
        (
            ["monitor.metric=val/acc,val/f1"],
            "monitor: {metric: val/f1, mode: max} with monitor.metric=val/f1, but {metric: val/acc, mode: max} without",
        ),
    ],
)
def test_every_value_is_composed_before_anything_runs(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_points(read_grid({}, words))
    assert str(caught.value) == message


def test_seeds_twice() -> None:
    with pytest.raises(ConfigError, match="seed: this sweep varies it, and it is given twice"):
        check_points(read_grid({"seeds": [1, 2]}, ["seed=1,2"]))
    with pytest.raises(ConfigError, match="seed=-1: must be from 0"):
        check_points(read_grid({"seeds": [1, -1]}, []))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sweep(name: str) -> None:
    sweep = read_sweep(name, {}, [])
    assert len(check_points(sweep)) > 2
    text = (ROOT / f"configs/sweep/{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and yaml.safe_load(text).keys() <= sweep.keys()
