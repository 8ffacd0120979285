"""What receives TechFlow's webhooks in Airflow's API server, or in its web server before Airflow 3."""
