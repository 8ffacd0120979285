"""The module that bears the distribution's name, `airflow_provider_techflow`, in an installed package.

Airflow 3.3 derives it from the distribution to look for example DAGs, and logs a traceback where there is none
(https://github.com/apache/airflow/issues/66305). There is nothing in it: what is to be used is in `techflow_provider`.
"""
