"""The parameters of operators and sensors: plain ones are checked when the DAG is parsed, all of them when it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from techflow_provider.client.errors import InvalidParameterError

if TYPE_CHECKING:
    from airflow.sdk import XComArg

    from techflow_provider.hooks.techflow import TechFlowHook

    # What an id or a name may be in a DAG: a value, a template, or the output of another task.
    Text: TypeAlias = str | int | XComArg

Check: TypeAlias = Callable[[str, Any], Any]
JINJA = re.compile(r"\{[{%#]")


class HasParameters(Protocol):
    """A task with parameters.

    :param template_fields: the parameters that Airflow renders
    :param template_ext: how the name of a file ends that Airflow reads in place of a text
    :param checks: for each parameter, the function that checks and normalises it
    """

    template_fields: Sequence[str]
    template_ext: Sequence[str]

    @property
    def checks(self) -> Mapping[str, Check]: ...


class UsesConnection:
    """A task that uses the connection in its `techflow_conn_id`."""

    @cached_property
    def hook(self) -> TechFlowHook:
        """The hook of the connection."""
        from techflow_provider.hooks.techflow import TechFlowHook

        return TechFlowHook(read(self, "techflow_conn_id"))  # type: ignore[arg-type]  # a task has parameters


def check_plain(task: HasParameters) -> None:
    """Check the parameters whose values are known when the DAG is parsed.

    :raises InvalidParameterError: one can't be used
    """
    for name, check in task.checks.items():
        value = getattr(task, name)
        is_file = isinstance(value, str) and value.endswith(tuple(task.template_ext))
        if name not in task.template_fields or not (is_file or is_template(value)):
            check(name, value)


def read(task: HasParameters, name: str) -> Any:
    """Return a parameter of a task that runs, checked and normalised.

    :raises InvalidParameterError: it can't be used
    """
    return task.checks[name](name, getattr(task, name))


def check_one_given(task: HasParameters, names: Sequence[str]) -> None:
    """Check that exactly one of some parameters is given, unless that is only known when they are rendered.

    :raises InvalidParameterError: none is, or several are
    """
    values = {name: getattr(task, name) for name in names}
    if any(isinstance(each, str) and is_template(each) for each in values.values()):
        return
    # An output of another task is not empty.
    given = [name for name, value in values.items() if is_template(value) or read(task, name) is not None]
    if len(given) != 1:
        raise InvalidParameterError(names[0], " and ".join(given) or "nothing", f"one of {', '.join(names)}")


def is_template(value: Any) -> bool:
    """Whether a value, or a part of it, is only known when the task runs: Jinja, an output, or a callable."""
    if isinstance(value, str):
        return JINJA.search(value) is not None
    if isinstance(value, Mapping):
        return any(map(is_template, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(is_template, value))
    return callable(value) or hasattr(value, "resolve")
