"""The provider's metadata against the classes that it names, and the form in its two styles."""

from __future__ import annotations

import importlib
import json
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import airflow
import jsonschema  # type: ignore[import-untyped]  # it comes with Airflow
import pytest

from techflow_provider.get_provider_info import get_provider_info
from techflow_provider.hooks.form import EXTRA_FIELDS
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.sandbox import Sandbox

pytestmark = [
    pytest.mark.airflow,
    # Airflow 2.11 and its Flask warn about themselves when they are imported; ours would still fail the test.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]


def test_the_package_has_the_name_of_the_distribution() -> None:
    assert get_provider_info()["package-name"] == metadata("airflow-provider-techflow")["Name"]


def test_the_wheel_has_a_module_of_the_distributions_name() -> None:
    root = Path(__file__).parents[2]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    module = f"{get_provider_info()['package-name'].replace('-', '_')}.py"
    (source,) = (source for source, target in wheel["force-include"].items() if target == module)
    assert (root / source).is_file()


@pytest.mark.parametrize("layer", ["operators", "sensors", "hooks", "triggers"])
def test_each_module_that_is_named_can_be_imported(layer: str) -> None:
    for entry in get_provider_info()[layer]:
        for module in entry["python-modules"]:
            assert importlib.import_module(module)


def test_the_connection_type_is_the_hooks() -> None:
    (declared,) = get_provider_info()["connection-types"]
    assert declared["connection-type"] == TechFlowHook.conn_type
    assert declared["hook-class-name"] == f"{TechFlowHook.__module__}.{TechFlowHook.__qualname__}"
    assert declared["hook-name"] == TechFlowHook.hook_name


def test_the_old_form_has_the_fields_of_the_new_one() -> None:
    if importlib.util.find_spec("flask_appbuilder") is None:
        # Airflow 3.2 and later have neither the package nor a use for the widgets.
        assert EXTRA_FIELDS
        return
    assert set(TechFlowHook.get_connection_form_widgets()) == set(EXTRA_FIELDS)


def test_the_form_stores_nothing_that_the_user_did_not_enter() -> None:
    """Airflow warns in each task's log of a text of less than five characters, such as "true"."""
    assert [name for name, field in EXTRA_FIELDS.items() if "default" in field["schema"]] == []
    if importlib.util.find_spec("flask_appbuilder") is None:
        return
    fields = {name: field.kwargs for name, field in TechFlowHook.get_connection_form_widgets().items()}
    assert {name for name, keywords in fields.items() if keywords.get("default")} == set()


def test_the_old_form_names_the_standard_fields_as_its_schema_wants() -> None:
    behaviour = TechFlowHook.get_ui_field_behaviour()
    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}
    assert behaviour["relabeling"] == {"password": "API key", "host": "Base URL"}
    schema = Path(airflow.__file__).parent / "customized_form_field_behaviours.schema.json"
    if schema.exists():
        jsonschema.validate(behaviour, json.loads(schema.read_text()))


def test_the_connections_test_returns_a_human_readable_result(served: Sandbox) -> None:
    assert TechFlowHook().test_connection() == (
        True,
        f"Connected to {served.base_url}: the API key can access 0 workflows",
    )
