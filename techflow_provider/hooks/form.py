"""The connection's form as the provider's metadata defines it; Airflow before 3.2 asks the hook for widgets instead."""

from __future__ import annotations

from typing import Any

from techflow_provider.get_provider_info import get_provider_info

(_TYPE,) = get_provider_info()["connection-types"]
# JSON schemas of the fields in the connection's extra. They have no defaults: the form would store them, and Airflow
# warns of short texts in each task.
EXTRA_FIELDS: dict[str, dict[str, Any]] = _TYPE["conn-fields"]
# The metadata spells the keys with hyphens; hooks may only have underscores.
FORM_BEHAVIOUR: dict[str, Any] = {name.replace("-", "_"): each for name, each in _TYPE["ui-field-behaviour"].items()}


def form_widgets() -> dict[str, Any]:
    """Return the fields as WTForms fields; only Airflow before 3.2 calls this, and has that package."""
    from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget, BS3TextFieldWidget
    from wtforms import IntegerField, StringField
    from wtforms.validators import Optional

    return {
        # A connection form with a field of another class has no fields at all.
        name: (IntegerField if spec["schema"]["type"][0] == "integer" else StringField)(
            spec["label"],
            description=spec["description"],
            widget=BS3PasswordFieldWidget() if spec["schema"].get("format") == "password" else BS3TextFieldWidget(),
            validators=[Optional()],
        )
        for name, spec in EXTRA_FIELDS.items()
    }
