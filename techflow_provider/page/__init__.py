"""The TechFlow page in Airflow 3.1 and later: what is known of TechFlow here, without asking TechFlow."""
