"""What the users of one API key share: its rate budget, and records of who started what.

Knows neither HTTP nor Airflow.
"""
