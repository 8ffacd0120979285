"""Links from Airflow's pages to TechFlow's dashboard."""
