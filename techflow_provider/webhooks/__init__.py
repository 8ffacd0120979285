"""The receiver of TechFlow's webhooks, for the API server of Airflow 3 and the web server of Airflow 2."""
