"""The state's API: what the API server offers to the processes of Airflow that can't reach its database."""
