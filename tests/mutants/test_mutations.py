"""A mutant differs from its module by one change that a test can see, and never in what people alone read."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "techflow_provider"


@pytest.fixture(scope="module")
def mutants_of():
    """The program's function; the folder is none of a package."""
    spec = importlib.util.spec_from_file_location("mutations", HERE / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    yield module.mutants_of
    del sys.modules["mutations"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a < b", {"a <= b"}),
        ("a is not None", {"a is None"}),
        ("a and b", {"a or b"}),
        ("not a", {"a"}),
        ("a + 1", {"a - 1", "a + 2"}),
        ("True", {"False"}),
        ("'key'", {"'~key'"}),
        ("max(a, b)", {"min(a, b)"}),
        ("f(a, k=b)", {"f(a)"}),
        ("a if b else c", {"a if not (b) else c"}),
        ("[a for a in b if a]", {"[a for a in b if not (a)]"}),
    ],
)
def test_each_decision_number_and_word_of_data_is_changed_on_its_own(mutants_of, before, after):
    mutants = {mutant.source.decode() for mutant in mutants_of(f"x = {before}\n".encode())}
    assert {mutant.replace("  ", " ") for mutant in mutants} == {f"x = {each}\n" for each in after}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("return a", {"return None"}),
        ("raise Broken(1)", {"pass"}),
        ("self.a = b", {"pass"}),
        ("await self.write()", {"pass"}),
        ("a += b", {"a -= b"}),
    ],
)
def test_each_effect_is_left_out_once(mutants_of, before, after):
    made = {mutant.after for mutant in mutants_of(f"async def f():\n    {before}\n".encode())}
    assert made == after


@pytest.mark.parametrize(
    "line",
    [
        '"""Say 1 > 0."""',
        "log.info('a', 1)",
        "a: int | None",
        "x = f'{a} 1'",
        "x = 'for people'",
        "T = TypeVar('T')",
        "T = Literal['a']",
    ],
)
def test_what_people_alone_read_stays_as_it_is(mutants_of, line):
    assert not mutants_of(f"def f():\n    {line}\n".encode())


def test_every_mutant_that_is_spared_is_one(mutants_of):
    spared = tomllib.loads((HERE / "spared.toml").read_text())["mutant"]
    made = {
        (module, mutant.function, mutant.before, mutant.after)
        for module in {each["module"] for each in spared}
        for mutant in mutants_of((PACKAGE / module).read_bytes())
    }
    assert {(each["module"], each["function"], each["before"], each["after"]) for each in spared} <= made
    assert all(each["why"] for each in spared)
