"""The TechFlow page in Airflow 3.1 and later, from local records alone: it sends no request to TechFlow."""
