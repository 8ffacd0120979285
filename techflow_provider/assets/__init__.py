"""Assets of the TechFlow provider, for Airflow 3."""
