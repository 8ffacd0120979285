"""What the processes that use one API key share: its rate budget, and records.

Knows neither HTTP nor Airflow.
"""
