"""The errors of the client, one tree; callers branch on the class or an attribute, never on text.

::

    TechFlowError
    ├── InvalidParameterError      bad input, found before anything was sent (also a ValueError)
    ├── BudgetTimeoutError         no slot in the rate budget before the deadline; nothing was sent
    ├── TransportError             no whole response came; `maybe_sent` says whether the server may have acted
    │   └── ResponseSizeError      the response is larger than the bound, and would be again
    ├── ResponseError              a response came, and it is not the one that was asked for
    │   ├── BadRequestError        400
    │   ├── UnauthorizedError      401
    │   ├── NotFoundError          404
    │   ├── RateLimitError         429, and the deadline left no time for another try
    │   ├── ServerError            500 and every other 5xx
    │   └── UnexpectedResponseError  anything the reference does not describe
    ├── AmbiguousExecutionError    an execution may have been started, and which one can't be told
    ├── AmbiguousWorkflowError     a workflow may have been created, and which one can't be told
    ├── StateUnavailableError      what a start must write down could not be written; nothing was sent
    ├── SupersededError            another try of the same task goes on in this one's place
    ├── ExecutionNotFoundError     an execution did not appear in the history in time
    ├── ExecutionTimeoutError      an execution was still running when the time to wait for it was over
    └── ExecutionFailedError       an execution ended in `execution.failed`

Every error is built from positional values alone, so it survives pickling, and none of them ever holds the API key.
"""

from __future__ import annotations

from collections.abc import Callable

from techflow_provider.client.parsing import in_seconds


class TechFlowError(Exception):
    """Base of all errors that this package raises on purpose."""


class InvalidParameterError(TechFlowError, ValueError):
    """A parameter has a value that can't be used; nothing was sent.

    :param parameter: the parameter's name as the caller knows it
    :param received: what came, already safe to show
    :param expected: what is expected instead
    """

    def __init__(self, parameter: str, received: str, expected: str) -> None:
        super().__init__(parameter, received, expected)
        self.parameter = parameter
        self.received = received
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.parameter}: expected {self.expected}, got {self.received}"


class BudgetTimeoutError(TechFlowError):
    """The rate budget has no slot before the deadline; nothing was sent.

    :param call: the call as `METHOD path`
    :param next_slot_seconds: seconds from now until the next slot would be
    :param deadline_seconds: seconds that were left to wait
    """

    def __init__(self, call: str, next_slot_seconds: float, deadline_seconds: float) -> None:
        super().__init__(call, next_slot_seconds, deadline_seconds)
        self.call = call
        self.next_slot_seconds = next_slot_seconds
        self.deadline_seconds = deadline_seconds

    def __str__(self) -> str:
        return (
            f"{self.call} was not sent: the next slot in the rate budget is {self.next_slot_seconds:.1f} s away, "
            f"and {self.deadline_seconds:.1f} s are left to wait; raise the timeout or spread the calls"
        )


class TransportError(TechFlowError):
    """No whole response came: connection, TLS, time-out, or a response over the size bound.

    :param call: the call as `METHOD path`
    :param reason: what went wrong, in words
    :param maybe_sent: False when the request surely never reached the server, so that repeating it is safe
    """

    def __init__(self, call: str, reason: str, maybe_sent: bool) -> None:
        super().__init__(call, reason, maybe_sent)
        self.call = call
        self.reason = reason
        self.maybe_sent = maybe_sent

    def __str__(self) -> str:
        effect = "it may have reached the server" if self.maybe_sent else "it never reached the server"
        return f"{self.call}: {self.reason}; {effect}"


class ResponseSizeError(TransportError):
    """The response is larger than the bound, so it was not read to its end; another one would be as large."""


class ResponseError(TechFlowError):
    """The server answered, but not with what was asked for.

    :param call: the call as `METHOD path`
    :param status_code: the HTTP status code of the answer
    :param detail: the server's words or what is wrong with them, shortened
    :param attempts: how many requests were sent for this call
    """

    advice = ""

    def __init__(self, call: str, status_code: int, detail: str, attempts: int = 1) -> None:
        super().__init__(call, status_code, detail, attempts)
        self.call = call
        self.status_code = status_code
        self.detail = detail
        self.attempts = attempts

    @property
    def fact(self) -> str:
        """What was asked and what came, without what to do about it."""
        tries = f" after {self.attempts} requests" if self.attempts > 1 else ""
        return f"{self.call} answered {self.status_code}{tries}: {self.detail}"

    def __str__(self) -> str:
        return f"{self.fact}; {self.advice}" if self.advice else self.fact


class BadRequestError(ResponseError):
    """400: the server refused the request's content."""


class UnauthorizedError(ResponseError):
    """401: the API key is missing, wrong or revoked."""

    advice = "check the API key (the connection's password)"


class NotFoundError(ResponseError):
    """404: no such workflow, or the base URL is wrong."""

    advice = "check the id, and the base URL (the connection's host)"


class RateLimitError(ResponseError):
    """429: over the limit of requests, and no time is left to try again. The request was not executed."""

    advice = "something else may be using the same API key; lower requests_per_minute or spread the calls"


class ServerError(ResponseError):
    """500 or another 5xx: the server failed. After a POST it may have acted all the same."""


class UnexpectedResponseError(ResponseError):
    """The answer is not one that the reference describes or that is accepted beside it."""


class AmbiguousExecutionError(TechFlowError):
    """An execution may have been started, and which one it is can't be told; starting another is not safe.

    :param workflow_id: the workflow
    :param facts: what is known, in words
    """

    def __init__(self, workflow_id: str, facts: str) -> None:
        super().__init__(workflow_id, facts)
        self.workflow_id = workflow_id
        self.facts = facts

    def __str__(self) -> str:
        return (
            f"an execution of workflow {self.workflow_id} may have been started: {self.facts}; "
            "look at the execution history in TechFlow before you start it again"
        )


class AmbiguousWorkflowError(TechFlowError):
    """A workflow may have been created, and which one it is can't be told; creating another is not safe.

    :param name: the workflow's name
    :param facts: what is known, in words
    """

    def __init__(self, name: str, facts: str) -> None:
        super().__init__(name, facts)
        self.name = name
        self.facts = facts

    def __str__(self) -> str:
        return (
            f"a workflow named {self.name!r} may have been created: {self.facts}; "
            "look at the list of workflows before you create it again"
        )


class StateUnavailableError(TechFlowError):
    """What a start has to write down first could not be written, so nothing was sent.

    :param workflow_id: the workflow
    :param reason: why, in words
    """

    def __init__(self, workflow_id: str, reason: str) -> None:
        super().__init__(workflow_id, reason)
        self.workflow_id = workflow_id
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"no execution of workflow {self.workflow_id} was started, since a lost answer could not be made good "
            f"without the shared state ([techflow] state_url): {self.reason}"
        )


class SupersededError(TechFlowError):
    """Another try of the same task has taken over the start of its execution; this one has to end.

    :param workflow_id: the workflow
    :param task: the task's identity
    """

    def __init__(self, workflow_id: str, task: str) -> None:
        super().__init__(workflow_id, task)
        self.workflow_id = workflow_id
        self.task = task

    def __str__(self) -> str:
        return f"another try of {self.task} has taken over the start of workflow {self.workflow_id}; this one ends"


class ExecutionNotFoundError(TechFlowError):
    """An execution did not appear in the execution history in time.

    :param wanted: the execution that was looked for, in words
    :param waited_seconds: how long it was looked for
    """

    def __init__(self, wanted: str, waited_seconds: float) -> None:
        super().__init__(wanted, waited_seconds)
        self.wanted = wanted
        self.waited_seconds = waited_seconds

    def __str__(self) -> str:
        return (
            f"{self.wanted} did not appear in the execution history within {in_seconds(self.waited_seconds)}; "
            "check the id and that the connection's API key belongs to the same account"
        )


class ExecutionTimeoutError(TechFlowError):
    """An execution was still running when the time to wait for it was over; it goes on in TechFlow.

    :param wanted: the execution that was waited for, in words
    :param waited_seconds: how long it was waited for
    :param last_seen: what the history said last, in words
    """

    def __init__(self, wanted: str, waited_seconds: float, last_seen: str) -> None:
        super().__init__(wanted, waited_seconds, last_seen)
        self.wanted = wanted
        self.waited_seconds = waited_seconds
        self.last_seen = last_seen

    def __str__(self) -> str:
        return (
            f"{self.wanted} did not end within {in_seconds(self.waited_seconds)} ({self.last_seen}); "
            "it goes on in TechFlow, which has no call to cancel it"
        )


class ExecutionFailedError(TechFlowError):
    """An execution ended in `execution.failed`.

    :param execution_id: the execution
    :param workflow_id: its workflow, when the history names it
    :param status: the status word as the server wrote it
    :param reason: the server's `error`, when there is one
    """

    def __init__(self, execution_id: str, workflow_id: str | None, status: str, reason: str | None) -> None:
        super().__init__(execution_id, workflow_id, status, reason)
        self.execution_id = execution_id
        self.workflow_id = workflow_id
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        workflow = f" of workflow {self.workflow_id}" if self.workflow_id else ""
        reason = f": {self.reason}" if self.reason else "; TechFlow gives no reason"
        return f"execution {self.execution_id}{workflow} ended with status {self.status!r}{reason}"


# The next look may go well after these; every other error says that no look ever will.
PASSING = (BudgetTimeoutError, RateLimitError, ServerError, TransportError, UnexpectedResponseError)
# Answers with which a server refuses a request before it acts on it; any other may come from something in between.
REFUSALS = frozenset({*range(400, 408), *range(410, 418), *(421, 422, 423, 424, 426, 428, 429, 431, 451)})
ACCEPTED = range(200, 300)


def is_transient(error: TechFlowError) -> bool:
    """Whether the next look may succeed although this one failed."""
    return isinstance(error, PASSING)


def log_or_raise(error: TechFlowError, warn: Callable[..., None]) -> None:
    """Tell a wait's log that a look failed and is repeated.

    :param warn: a logger's `warning`
    :raises TechFlowError: the same error, when no look ever will succeed
    """
    if not is_transient(error):
        raise error
    warn("A look at the execution history failed and is repeated: %s", error)


def had_no_effect(error: TechFlowError) -> bool:
    """Whether a POST that failed surely changed nothing: it never left, or was refused."""
    if isinstance(error, TransportError):
        return not error.maybe_sent
    if isinstance(error, ResponseError):
        return error.status_code in REFUSALS
    return isinstance(error, BudgetTimeoutError | InvalidParameterError)


def was_accepted(error: TechFlowError) -> bool:
    """Whether a POST surely took effect although its answer can't be read."""
    return isinstance(error, ResponseError) and error.status_code in ACCEPTED


def backoff_seconds(interval_seconds: float, failures: int, longest_seconds: float = 60.0) -> float:
    """Return the time to the next look: the interval, doubled with each failure in a row, up to a bound."""
    longest = max(interval_seconds, longest_seconds)
    return min(interval_seconds * 2.0 ** min(failures, 30), longest)
