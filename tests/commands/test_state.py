"""`state`: where the shared state is kept, and its table."""

from __future__ import annotations


def test_show_says_where_the_state_is_and_why(served, techflow, home):
    done = techflow("state", "show", "--output", "json")
    assert done.json == {
        "kind": "file",
        "location": str(home / "techflow" / "state.db"),
        "reason": "Airflow's database is SQLite, so all its processes run on this host",
        "warnings": [],
    }
    assert str(home) in techflow("state", "show").out


def test_show_says_why_the_state_can_not_be_used(served, techflow, home):
    (home / "techflow").touch()
    done = techflow("state", "show")
    assert done.code == 1
    assert "isn't a folder" in done.out or "File exists" in done.out or "Not a directory" in done.out


def test_init_prints_the_statements_that_create_the_table(served, techflow, home, monkeypatch):
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "metadata")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{home}/airflow.db")
    done = techflow("state", "init")
    assert done.code == 0
    assert "CREATE TABLE IF NOT EXISTS techflow_state" in done.out
    assert done.out.count(";") == 2


def test_init_has_nothing_to_print_for_a_file(served, techflow, home):
    assert "needs no table" in techflow("state", "init").out
