"""The former module of the plugin, for an installation whose entry points still name it."""

from techflow_provider.plugin import TechFlowPlugin

__all__ = ["TechFlowPlugin"]
