"""Arguments and types are read from source, whatever way a name takes there."""

import sys
from importlib.util import find_spec

import pytest

from src.config.signature import signature_of

SOURCE = {
    "__init__.py": "from .reexport import *\nfrom .classes import Plain as Renamed\nfrom . import classes as inner\n",
    "reexport.py": "from hidden_package.classes import Child, Open\nAlias = Child\n_private = 1\n",
    "aliases.py": """
from typing import Literal, Union
import sys
from pathlib import Path
PATH = Union[str, Path]
MODE = Literal['a', 2]
""",
    "classes.py": """
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal, Optional, Sequence, Union, overload
from hidden_package.aliases import MODE, PATH
from hidden_package import nowhere
raise RuntimeError("imported")

class Colour(Enum):
    RED = 1

class Tensor: ...

class Plain:
    def __init__(self, a, b: int = 1, *, c: "Optional[float]" = None): ...

class Child(Plain):
    def __init__(self, d: bool, *args, **kwargs):
        super().__init__(1, b=kwargs.pop("width", 2), **kwargs)

class Inherits(Child): ...

class Named(Plain):
    def __init__(self, e, **kwargs):
        Plain.__init__(self, e, **kwargs)

class Open(Plain):
    def __init__(self, **rest): self.rest = rest

class Unknown(nowhere.Base): ...

@dataclass
class Data:
    kind: ClassVar[str] = "x"
    first: int
    second: list[str] = field(default_factory=list)

try:
    import something_that_is_not_there
except ImportError:
    def fallback(x: int, y: str = "a"): ...

def factory(*, depth: int, **kwargs):
    return Plain(depth, **kwargs)

class Types:
    def __init__(self, path: PATH, mode: MODE, either: float | Tensor, only: Tensor, pair: tuple[int, float],
                 some: Sequence[int], table: dict[str, int], lost: nowhere.Thing, colour: Colour, anything: Any,
                 untyped, literal: Literal["x", "y"], quoted: "int | None", many: tuple[int, ...], flag: bool,
                 nested: Optional[Union[list[int], str]]): ...
""",
}


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    (root / "hidden_package").mkdir()
    for name, text in SOURCE.items():
        (root / "hidden_package" / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(root))
    yield
    sys.path.remove(str(root))
    assert "hidden_package.classes" not in sys.modules


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("classes.Plain", {"a": None, "b": "1", "c": "None"}),
        ("Renamed", {"a": None, "b": "1", "c": "None"}),
        ("classes.Child", {"d": None, "width": "...", "c": "None"}),
        ("Child", {"d": None, "width": "...", "c": "None"}),
        ("Alias", {"d": None, "width": "...", "c": "None"}),
        ("classes.Inherits", {"d": None, "width": "...", "c": "None"}),
        ("classes.Named", {"e": None, "b": "1", "c": "None"}),
        ("classes.fallback", {"x": None, "y": "'a'"}),
        ("classes.factory", {"depth": None, "b": "1", "c": "None"}),
        ("classes.Colour", {}),
    ],
)
def test_arguments(name, arguments):
    signature = signature_of(f"hidden_package.{name}")
    assert {argument: what.default for argument, what in signature.arguments.items()} == arguments
    assert not signature.is_open or name == "classes.Colour"


@pytest.mark.parametrize("name", ["classes.Open", "classes.Unknown", "classes.Data"])
def test_what_cannot_be_known_is_open(name):
    assert signature_of(f"hidden_package.{name}").is_open


@pytest.mark.parametrize(
    "name", ["classes", "classes.Nothing", "inner.Plain", "aliases.sys", "aliases.PATH", "nowhere.Thing"]
)
def test_no_class_and_no_function(name):
    assert signature_of(f"hidden_package.{name}") is None


@pytest.mark.parametrize(
    ("argument", "text", "right", "wrong"),
    [
        ("path", "str", ["x"], [1, None]),
        ("mode", "'a' or 2", ["a", 2], ["b", "2", True]),
        ("either", "float", [1, 0.5], ["fast", True, None, [1]]),
        ("only", None, ["x", 1, None], []),
        ("pair", "list", [[1, 2]], [1]),
        ("some", "list", [[], [1]], ["a"]),
        ("table", "section", [{"a": 1}], [3]),
        ("lost", None, ["x", 1, None], []),
        ("colour", None, ["RED"], []),
        ("anything", None, [None, 1], []),
        ("untyped", None, [None, 1], []),
        ("literal", "'x' or 'y'", ["x"], ["z"]),
        ("quoted", "int or null", [1, None], [1.5, "a", False]),
        ("many", "list", [[1, 2, 3]], [{"a": 1}]),
        ("flag", "true/false", [True], [1, "yes"]),
        ("nested", "list or str or null", [[1], "a", None], [1.5]),
    ],
)
def test_types(argument, text, right, wrong):
    expected = signature_of("hidden_package.classes.Types").arguments[argument].expected
    assert [expected(value) for value in right] == [None] * len(right)
    assert [expected(value) for value in wrong] == [text] * len(wrong)


def test_installed_libraries():
    """The names that configurations use, in the releases that are installed."""
    assert signature_of("torch.optim.Adam").arguments["lr"].expected("fast") == "float"
    assert "max_epochs" in signature_of("lightning.pytorch.Trainer").arguments
    factory = signature_of("torchvision.models.resnet18")
    assert "zero_init_residual" in factory.arguments
    assert not factory.is_open
    assert not signature_of("torch.optim.lr_scheduler.OneCycleLR").is_open
    assert not signature_of("lightning.pytorch.callbacks.LearningRateMonitor").is_open
    if find_spec("torch_geometric"):
        assert "aggr" in signature_of("torch_geometric.nn.CGConv").arguments
    assert signature_of("torch.nn.Linear").arguments["bias"].default == "True"
