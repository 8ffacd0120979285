"""What the operators have in common: a connection and its hook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from techflow_provider.client.values import as_text
from techflow_provider.parameters import Check, UsesConnection

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
else:
    # Type checkers don't know the class under this name.
    from airflow.providers.common.compat.sdk import BaseOperator

Checks: TypeAlias = dict[str, Check]


class TechFlowOperator(UsesConnection, BaseOperator):
    """What the operators have in common: a connection and its hook.

    :param techflow_conn_id: connection of the type `techflow`
    """

    template_fields: Sequence[str] = ("techflow_conn_id",)
    ui_color = "#dcecf7"

    checks: ClassVar[Checks] = {"techflow_conn_id": as_text}

    def __init__(self, *, techflow_conn_id: str = "techflow_default", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.techflow_conn_id = techflow_conn_id
