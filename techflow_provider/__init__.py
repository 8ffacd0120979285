"""Apache Airflow provider for TechFlow, the hosted workflow service."""

__version__ = "0.1.0"
