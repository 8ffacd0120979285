"""The commands: their output for people and for programs, and their exit codes."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from argparse import ArgumentParser
from functools import partial

import pytest

import techflow_provider
from techflow_provider.cli import get_airflow_commands
from techflow_provider.sandbox import Fault

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("default")]


def test_workflows_are_listed_as_a_table_and_as_json(served, techflow):
    done = techflow("workflows", "list")
    assert (done.code, done.out.splitlines()[0].split()) == (0, ["ID", "NAME", "STATUS", "DESCRIPTION"])
    assert done.out.splitlines()[1].split() == ["wf_1", "Nightly", "active"]
    assert [each["id"] for each in techflow("workflows", "list", "-o", "json").json] == ["wf_1"]
    assert techflow("workflows", "list", "--name", "other").out == "none\n"


def test_a_workflow_is_created_shown_updated_and_deleted(served, techflow):
    created = techflow("workflows", "create", "Weekly", "--trigger", "manual", "--output", "json").json
    assert (created["name"], created["triggers"]) == ("Weekly", ["manual"])
    assert techflow("workflows", "get", created["id"]).out.endswith("triggers     manual\n")
    assert techflow("workflows", "update", created["id"], "--description", "on Mondays").code == 0
    assert "on Mondays" in techflow("workflows", "get", created["id"]).out
    assert techflow("workflows", "delete", created["id"], "--yes").out == f"deleted {created['id']}\n"
    assert techflow("workflows", "get", created["id"]).code == 1


def test_a_workflow_that_has_the_name_is_returned_updated_or_refused(served, techflow):
    create = partial(techflow, "workflows", "create", "Nightly", "--description", "new", "-o", "json", "--if-exists")
    assert (create("return").json["id"], create("fail").code, served.count("PUT")) == ("wf_1", 2, 0)
    assert (create("update").json["id"], served.workflows[0]["description"]) == ("wf_1", "new")
    assert create("create").json["id"] != "wf_1"
    refused = create("return")
    assert (refused.code, "rename or delete the others" in refused.err) == (2, True)
    assert len(served.workflows) == 2


@pytest.mark.parametrize(("reply", "code"), [("y\n", 0), ("\n", 1), ("no\n", 1), ("", 1)])
def test_a_workflow_is_deleted_only_by_a_user_who_confirms_it(served, techflow, monkeypatch, reply, code):
    terminal = io.StringIO(reply)
    terminal.isatty = lambda: True  # type: ignore[method-assign]  # as if a person sat there
    monkeypatch.setattr(sys, "stdin", terminal)
    done = techflow("workflows", "delete", "wf_1")
    assert (done.code, len(served.workflows)) == (code, code)
    assert "Delete workflow wf_1 permanently? [y/N]" in done.err


def test_nothing_is_deleted_where_nobody_can_be_asked(served, techflow, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    done = techflow("workflows", "delete", "wf_1")
    assert (done.code, len(served.workflows), "--yes" in done.err) == (2, 1, True)


def test_the_version_and_the_exit_codes_are_shown(techflow):
    assert techflow("--version").out == f"airflow-provider-techflow {techflow_provider.__version__}\n"
    for command in ((), ("trigger",), ("workflows", "list")):
        assert "3 the execution was still running" in " ".join(techflow(*command, "--help").out.split())


def test_the_examples_are_written_and_nothing_is_replaced(techflow, tmp_path):
    own = tmp_path / "dags" / "techflow_mapped.py"
    own.parent.mkdir()
    own.write_text("# mine\n")
    done = techflow("examples", str(own.parent), "-o", "json")
    assert {each["file"] for each in done.json} == {str(path) for path in own.parent.iterdir()}
    assert [each["file"] for each in done.json if each["result"] != "written"] == [str(own)]
    assert own.read_text() == "# mine\n"
    compile((own.parent / "techflow_payload.py").read_text(), "techflow_payload.py", "exec")


def test_a_shell_completes_a_command(tmp_path):
    completions = tmp_path / "completions"
    line = "techflow workflows cr"
    completing = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "IFS": "\n"}
    environment = {**os.environ, **completing, "_ARGCOMPLETE_STDOUT_FILENAME": str(completions)}
    subprocess.run([sys.executable, "-m", "techflow_provider"], env=environment, check=True)
    assert completions.read_text().strip() == "create"


def test_trigger_prints_the_execution_and_waits_for_its_completion(served, techflow):
    started = techflow("trigger", "wf_1", "--payload", '{"day": 1}', "--output", "json")
    assert (started.code, started.json["workflow_id"], started.json["state"]) == (0, "wf_1", "running")
    waited = techflow("trigger", "wf_1", "--wait", "--poll-interval", "0.02", "--output", "json")
    assert (waited.code, waited.json["state"]) == (0, "completed")
    assert f"started execution {waited.json['id']}" in waited.err
    listed = techflow("executions", "--workflow-id", "wf_1", "--limit", "1", "--output", "json").json
    assert [each["id"] for each in listed] == [waited.json["id"]]


def test_a_failed_execution_gives_exit_code_1(served, techflow):
    served.plan("wf_1", outcome="failed", error="disk full")
    done = techflow("trigger", "wf_1", "--wait", "--poll-interval", "0.02")
    assert done.code == 1
    assert "disk full" in done.out


def test_an_execution_that_is_still_running_gives_exit_code_3(served, techflow):
    served.plan("wf_1", seconds=3600)
    done = techflow("trigger", "wf_1", "--wait", "--poll-interval", "0.02", "--timeout", "0.1")
    assert (done.code, done.out) == (3, "")
    assert "it keeps running in TechFlow" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("workflows", "update", "wf_1"),
        ("trigger", "wf_1", "--payload", "[1]"),
        ("trigger", "wf_1", "--payload", "{"),
        ("workflows", "list", "--conn-id", "nowhere"),
        ("executions", "--limit", "0"),
        ("trigger", "wf_1", "--timeout", "-1"),
        ("nonsense",),
        ("workflows",),
        (),
    ],
)
def test_invalid_input_gives_exit_code_2(served, techflow, arguments):
    done = techflow(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err


def test_a_connection_of_another_type_is_named(techflow, connect):
    connect("http://127.0.0.1:1", conn_type="http")
    done = techflow("budget")
    assert done.code == 2
    assert "'techflow_default' of the type 'http'" in done.err


def test_control_characters_in_names_are_not_printed(served, techflow):
    served.add_workflow("evil\x1b[2Jname", id="wf_2")
    assert "\x1b" not in techflow("workflows", "list").out
    assert "\x1b" not in techflow("workflows", "get", "wf_2").out


def test_the_budget_is_shown_without_a_request(served, techflow, home):
    techflow("workflows", "list")
    requests = served.count()
    shown = techflow("budget", "--output", "json").json
    assert shown["used_last_minute"] == {"command": 1, "poll": 0}
    assert (shown["requests_per_minute"], shown["shared"], shown["cooldown_seconds"]) == (10_000, True, 0)
    assert shown["store"] == str(home / "techflow" / "state.db")
    text = techflow("budget").out
    assert "used_last_minute     command 1, poll 0\n" in text
    assert served.count() == requests


def test_a_cool_down_after_a_429_is_shown_in_the_budget(served, techflow):
    served.faults.add(Fault("status", status=429, retry_after="600"))
    techflow("doctor")
    assert 0 < techflow("budget", "--output", "json").json["cooldown_seconds"] <= 600


def test_what_was_learned_from_a_429_is_shown_in_the_budget_and_by_doctor(served, techflow):
    assert techflow("budget", "--output", "json").json["learned"] == ""
    served.faults.add(Fault("status", status=429, retry_after="0", times=1))
    techflow("workflows", "list")
    assert "a 429 although requests were evenly paced" in techflow("budget", "--output", "json").json["learned"]
    assert "of 10000 requests a minute, bursts of" in techflow("budget").out
    assert "learned: " in techflow("doctor").out


def test_airflows_command_line_loads_only_the_definitions():
    code = (
        "import sys, techflow_provider.cli; print(*sorted(m for m in sys.modules if 'techflow' in m or m == 'httpx'))\n"
        "techflow_provider.cli.get_airflow_commands()\n"
        "print({'techflow_provider.client.client', 'techflow_provider.commands.console'} & sys.modules.keys())"
    )
    root = techflow_provider.__path__[0] + "/.."
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("techflow_provider techflow_provider.cli", "set()")


def test_a_command_runs_in_the_shell_of_a_task_where_airflow_blocks_its_database(served):
    # Airflow warns of so short a secret where it logs.
    shell = {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "airflow-db-not-allowed:///",
        "AIRFLOW__TECHFLOW__STATE_URL": "file",
    }
    command = [sys.executable, "-m", "techflow_provider", "state", "show", "-o", "json"]
    root = techflow_provider.__path__[0] + "/.."
    done = subprocess.run(command, cwd=root, env={**os.environ, **shell}, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["kind"]) == (0, "file"), done.stderr


class LoggedErrors(io.IOBase):
    """Standard error as a task of Airflow 2 has it: what is written there is logged."""

    def write(self, text: str) -> int:
        """Log a text."""
        logging.getLogger("airflow.task").warning(text)
        return len(text)


def test_a_command_runs_in_a_python_task_where_standard_error_is_logged(served, techflow, monkeypatch):
    monkeypatch.setattr(sys, "stderr", LoggedErrors())
    # What it logs must not end in itself.
    waited = techflow("trigger", "wf_1", "--wait", "--poll-interval", "0.02", "--output", "json")
    assert waited.json["status"] == "completed"


def test_airflow_gets_the_same_commands(served, capsys):
    from airflow.cli.cli_config import GroupCommand

    (group,) = get_airflow_commands()
    assert isinstance(group, GroupCommand)
    assert [each.name for each in group.subcommands] == [
        *("workflows", "trigger", "executions", "webhooks", "state", "starts", "budget", "examples", "doctor")
    ]
    budget = next(each for each in group.subcommands if each.name == "budget")
    parser = ArgumentParser()
    for argument in budget.args:
        argument.add_to_parser(parser)
    budget.func(parser.parse_args(["--output", "json"]))
    assert json.loads(capsys.readouterr().out)["requests_per_minute"] == 10_000


HOSTILE = "\x1b]0;owned\x07\x9b31m\u202egnp\r\n"


@pytest.mark.parametrize("output", ["table", "json"])
@pytest.mark.parametrize(
    "command",
    [
        ("workflows", "list"),
        ("workflows", "get", "wf_1"),
        ("executions",),
        ("trigger", "wf_1", "--wait", "--poll-interval", "0.02"),
        ("trigger", "wf_1", "--wait", "--poll-interval", "0.02", "--timeout", "0.1"),
        ("workflows", "delete", f"wf_{HOSTILE}"),
    ],
)
def test_no_text_of_a_server_controls_the_terminal(served, techflow, command, output):
    status = "running" if "--timeout" in command else "completed"
    row = {"id": f"ex_{HOSTILE}", "workflow_id": HOSTILE, "status": status, "error": HOSTILE, HOSTILE: HOSTILE}
    workflow = {**row, "name": HOSTILE, "status": HOSTILE, "description": HOSTILE}
    body = json.dumps({**row, "executions": [row], "workflows": [workflow]})
    served.faults.add(Fault(status=200, body=body))
    done = techflow(*command, "--output", output)
    assert done.out or done.err
    assert not set(done.out + done.err) & set("\x1b\x07\x9b\u202e\r")
    if output == "json" and done.out:
        assert "\x1b]0;owned" in json.dumps(done.json, ensure_ascii=False).replace("\\u001b", "\x1b")
