"""What the trigger operator starts, joins, waits for, skips and says; the same in a worker and in the triggerer."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from techflow_provider import deferral
from techflow_provider.client import ExecutionFailedError, InvalidParameterError
from techflow_provider.compat import has_api_server
from techflow_provider.operators.techflow import TechFlowTriggerWorkflowOperator
from techflow_provider.sandbox import Fault, Sandbox
from tests.operators.attempts import KEY, Attempt, after_polls

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "triggerer"])


@pytest.fixture
def attempt(current_context: dict[str, Any]) -> Any:
    """Make one attempt of a task."""

    def make(try_number: int = 1, **fields: Any) -> Attempt:
        options = {"task_id": "t", "workflow_id": "wf_1", "poll_interval": 0.2, **fields}
        made = Attempt(lambda: TechFlowTriggerWorkflowOperator(**options), try_number)
        current_context.update(made.context)
        return made

    return make


def finish(sandbox: Sandbox, outcome: Any = "completed", **row: Any) -> None:
    """End the only execution that is running."""
    (running,) = (each for each in sandbox.executions if each.finished_at is None)
    sandbox.finish(running.id, outcome=outcome, **row)


@MODES
def test_a_workflow_is_started_by_its_name(served: Sandbox, attempt: Any, *, deferrable: bool) -> None:
    after_polls(served, 1, lambda: finish(served))
    run = attempt(workflow_id=None, workflow_name="one", wait_for_completion=True, deferrable=deferrable)
    assert run.run() == served.executions[0].id
    assert served.executions[0].workflow_id == "wf_1"


def test_a_name_that_several_workflows_have_starts_nothing_and_lists_their_ids(served: Sandbox, attempt: Any) -> None:
    served.add_workflow("one", id="wf_2")
    with pytest.raises(InvalidParameterError, match=r"^workflow_name: expected the name of one.* wf_1, wf_2") as caught:
        attempt(workflow_id=None, workflow_name="one").run()
    assert "use the id of the one you mean" in str(caught.value)
    assert not served.executions


def test_a_name_that_no_workflow_has_names_those_that_there_are(served: Sandbox, attempt: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"TechFlow lists one\).*did you mean one"):
        attempt(workflow_id=None, workflow_name="onee").run()


def test_an_id_and_a_name_that_templates_have_rendered_are_refused(served: Sandbox, attempt: Any) -> None:
    made = attempt(workflow_id="{{ a }}", workflow_name="{{ b }}")
    made.task.workflow_id, made.task.workflow_name = "wf_1", "one"
    with pytest.raises(InvalidParameterError, match="got workflow_id and workflow_name"):
        made.run()
    made.task.workflow_name = ""
    assert made.run() == served.executions[0].id


@MODES
def test_a_run_that_someone_else_started_is_joined_while_it_is_running(
    served: Sandbox, attempt: Any, *, deferrable: bool
) -> None:
    served.finish(served.start("wf_1").id)
    other = served.start("wf_1")
    after_polls(served, 2, lambda: finish(served))
    made = attempt(reuse_running=True, wait_for_completion=True, deferrable=deferrable)
    assert made.run() == other.id
    assert made.xcoms["techflow_start"]["decision"] == "joined"
    assert made.xcoms["execution"]["status"] == "completed"
    assert served.count(method="POST") == 0


def test_without_a_run_to_join_one_is_started_and_a_retry_joins_that(served: Sandbox, attempt: Any) -> None:
    served.finish(served.start("wf_1").id)
    started = attempt(reuse_running=True).run()
    assert attempt(2, reuse_running=True).run() == started
    assert served.count(method="POST") == 1


def test_a_retry_stays_with_the_run_that_it_joined(served: Sandbox, attempt: Any) -> None:
    other = served.start("wf_1")
    assert attempt(reuse_running=True).run() == other.id
    served.start("wf_1")
    assert attempt(2, reuse_running=True).run() == other.id
    assert served.count(method="POST") == 0


def test_a_joined_run_that_fails_is_not_joined_again(served: Sandbox, attempt: Any) -> None:
    other = served.start("wf_1")
    after_polls(served, 2, lambda: finish(served, "failed"))
    with pytest.raises(ExecutionFailedError):
        attempt(reuse_running=True, wait_for_completion=True).run()
    after_polls(served, 2, lambda: finish(served))
    assert attempt(2, reuse_running=True, wait_for_completion=True).run() != other.id
    assert served.count(method="POST") == 1


@MODES
def test_a_failure_in_which_techflow_repeats_the_key_is_shown_without_it(
    served: Sandbox, attempt: Any, *, deferrable: bool
) -> None:
    after_polls(served, 1, lambda: finish(served, "failed", error=f"no access with {KEY}"))
    with pytest.raises(ExecutionFailedError) as caught:
        attempt(wait_for_completion=True, deferrable=deferrable).run()
    assert "ended with status 'failed': text that repeats the API key and is not shown" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_joined_run_is_not_claimed_so_that_its_own_task_finds_it(served: Sandbox, attempt: Any) -> None:
    served.faults.add(Fault("lost_response", path="/workflows/*/execute", times=1))
    other = served.start("wf_1")
    assert attempt(task_id="joins", reuse_running=True).run() == other.id
    from techflow_provider.hooks.techflow import TechFlowHook
    from techflow_provider.submission.airflow import ExecutionStarter
    from techflow_provider.submission.model import Submitter

    attempts = ExecutionStarter(TechFlowHook(), Submitter("another")).attempts
    assert list(attempts.claims([("wf_1", other.id)])) == []


@pytest.mark.parametrize("payload", [None, {"day": "2026-01-01"}, '{"day": "2026-01-01"}'])
def test_a_payload_says_which_task_sends_it_and_a_retry_sends_the_same(
    served: Sandbox, attempt: Any, payload: Any, caplog: pytest.LogCaptureFixture
) -> None:
    started = attempt(payload=payload, annotate_payload=True).run()
    expected = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1}
    assert served.executions[0].payload == {**({"day": "2026-01-01"} if payload else {}), "airflow": expected}
    assert attempt(2, payload=payload, annotate_payload=True).run() == started
    assert "another payload" not in caplog.text


@pytest.mark.parametrize(("payload", "message"), [("[1]", "a dict"), ({"airflow": 1}, "without it")])
def test_a_payload_that_cannot_say_it_starts_nothing(served: Sandbox, attempt: Any, payload: Any, message: str) -> None:
    made = attempt(annotate_payload=True)
    made.task.payload = payload
    with pytest.raises(InvalidParameterError, match=rf"^payload: expected .*{message}"):
        made.run()
    assert not served.executions


@pytest.mark.parametrize("number", [1, 2], ids=["attempt", "retry"])
def test_only_a_retry_that_airflow_resumes_with_the_failure_of_the_attempt_before_begins_anew(
    served: Sandbox, attempt: Any, current_context: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # Airflow 3.0 does so.
    monkeypatch.setattr(deferral, "resumes_retries", lambda: True)
    monkeypatch.setattr(deferral, "get_current_context", lambda: current_context)
    first = attempt(wait_for_completion=True, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        first.task.execute(first.context)
    finish(served, "failed")
    event = {"execution": {"id": served.executions[0].id, "workflow_id": "wf_1", "status": "failed"}, "state": "failed"}
    resumed = attempt(number, wait_for_completion=True, deferrable=True)
    arguments = {**(deferred.value.kwargs or {}), "event": event}
    with pytest.raises(ExecutionFailedError if number == 1 else TaskDeferred):
        resumed.task.resume_execution(deferred.value.method_name, arguments, resumed.context)
    assert len(served.executions) == number


@MODES
@pytest.mark.parametrize("allowed", ["failed", ["completed", "failed"]])
def test_a_final_status_may_be_a_success(served: Sandbox, attempt: Any, allowed: Any, *, deferrable: bool) -> None:
    after_polls(served, 1, lambda: finish(served, "failed"))
    made = attempt(wait_for_completion=True, allowed_statuses=allowed, deferrable=deferrable)
    assert made.run() == made.xcoms["execution"]["id"]
    assert made.xcoms["execution"]["status"] == "failed"


@MODES
def test_a_final_status_may_skip_the_task(served: Sandbox, attempt: Any, *, deferrable: bool) -> None:
    from airflow.providers.common.compat.sdk import AirflowSkipException

    after_polls(served, 1, lambda: finish(served, "failed"))
    made = attempt(wait_for_completion=True, skip_on_statuses=("failed",), deferrable=deferrable)
    with pytest.raises(AirflowSkipException, match="ended with status 'failed'"):
        made.run()
    assert made.xcoms["execution"]["status"] == "failed"


def test_a_retry_takes_an_execution_whose_final_status_is_a_success_or_skips(served: Sandbox, attempt: Any) -> None:
    started = attempt(wait_for_completion=True, deferrable=True, allowed_statuses="failed")
    after_polls(served, 1, lambda: finish(served, "failed"))
    from airflow.providers.common.compat.sdk import TaskDeferred

    with pytest.raises(TaskDeferred):
        # Its worker and its triggerer die.
        started.task.execute(started.context)
    finish(served, "failed")
    assert attempt(2, wait_for_completion=True, allowed_statuses="failed").run() == served.executions[0].id
    assert served.count(method="POST") == 1


def test_a_status_that_cannot_be_a_final_one_starts_nothing(served: Sandbox, attempt: Any) -> None:
    with pytest.raises(InvalidParameterError, match=r"^skip_on_statuses: expected one of"):
        attempt(wait_for_completion=True, skip_on_statuses=["archived"]).run()
    assert not served.executions


def test_a_task_that_does_not_wait_has_no_finished_execution(served: Sandbox, attempt: Any) -> None:
    made = attempt()
    made.run()
    assert "execution" not in made.xcoms


@pytest.mark.parametrize("text", ["True", "true", "1"])
def test_what_templates_render_as_text_is_read(served: Sandbox, attempt: Any, text: str) -> None:
    made = attempt(wait_for_completion="{{ a }}", timeout="{{ b }}", poll_interval="{{ c }}")
    made.task.wait_for_completion, made.task.timeout, made.task.poll_interval = text, " 60.5 ", "None"
    after_polls(served, 1, lambda: finish(served))
    made.run()
    assert made.xcoms["execution"]["status"] == "completed"


@pytest.mark.parametrize(
    ("name", "text"), [("wait_for_completion", "yes"), ("timeout", "soon"), ("poll_interval", "-1"), ("timeout", "nan")]
)
def test_what_a_template_renders_wrongly_starts_nothing(served: Sandbox, attempt: Any, name: str, text: str) -> None:
    made = attempt(**{"wait_for_completion": True, name: "{{ a }}"})
    setattr(made.task, name, text)
    with pytest.raises(InvalidParameterError, match=rf"^{name}: expected"):
        made.run()
    assert not served.executions


@MODES
def test_the_log_says_where_the_execution_is_and_what_is_waited_for(
    served: Sandbox, attempt: Any, caplog: pytest.LogCaptureFixture, *, deferrable: bool
) -> None:
    caplog.set_level(logging.INFO)
    after_polls(served, 1, lambda: finish(served))
    attempt(wait_for_completion=True, deferrable=deferrable).run()
    place, execution_id = "triggerer" if deferrable else "worker", served.executions[0].id
    assert f"Waiting in the {place} for execution {execution_id}, with a poll every 0.2 s" in caplog.text
    assert caplog.text.count(f"see https://dash.test/{execution_id}") == 1


@pytest.mark.parametrize("retries", [0, 1])
def test_the_log_of_a_deferred_task_without_retries_says_what_to_do_if_airflow_3_fails_it(
    served: Sandbox, attempt: Any, caplog: pytest.LogCaptureFixture, retries: int
) -> None:
    caplog.set_level(logging.INFO)
    made = attempt(wait_for_completion=True, deferrable=True, retries=retries)
    with pytest.raises(TaskDeferred):
        made.task.execute(made.context)
    assert served.executions
    assert ("mark it as success" in caplog.text) == (has_api_server() and retries == 0)


def test_the_log_of_a_task_that_does_not_wait_has_the_dashboards_url(
    served: Sandbox, attempt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert f"Execution {attempt().run()} in TechFlow: https://dash.test/" in caplog.text


@MODES
def test_a_failure_has_techflows_own_words(served: Sandbox, attempt: Any, *, deferrable: bool) -> None:
    after_polls(served, 1, lambda: finish(served, "failed", error="table\n\x1b[31m is locked" + "x" * 5000))
    with pytest.raises(ExecutionFailedError) as caught:
        attempt(wait_for_completion=True, deferrable=deferrable, payload={"a": "not shown"}).run()
    assert "ended with status 'failed': table" in str(caught.value)
    assert "is locked" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500
    assert "not shown" not in str(caught.value)


def test_killing_a_task_names_its_execution_as_soon_as_that_is_known(
    served: Sandbox, attempt: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from techflow_provider.submission.attempts import AttemptStore

    made = attempt()
    keep = AttemptStore.keep

    def killed(self: Any, *arguments: Any) -> None:
        # Airflow's handler of SIGTERM calls this, while what is known is written to a state that is slow.
        made.task.on_kill()
        keep(self, *arguments)

    monkeypatch.setattr(AttemptStore, "keep", killed)
    execution_id = made.run()
    assert f"Execution {execution_id} keeps running: TechFlow has no call to cancel it" in caplog.messages
