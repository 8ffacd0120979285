"""The errors of the client, one tree; callers branch on the class or an attribute, never on text.

::

    TechFlowError
    ├── InvalidParameterError      invalid input, found before anything was sent (also a ValueError)
    ├── BudgetTimeoutError         no slot in the rate budget before the deadline; nothing was sent
    ├── TransportError             no complete response; `maybe_sent` says whether the server may have acted
    │   └── ResponseSizeError      the response exceeds the size limit, and would again
    ├── ResponseError              a response other than the expected one
    │   ├── BadRequestError        400
    │   ├── UnauthorizedError      401
    │   ├── NotFoundError          404
    │   ├── RateLimitError         429, and the deadline left no time for a retry
    │   ├── ServerError            500 and every other 5xx
    │   └── UnexpectedResponseError  anything that the reference doesn't describe
    │       └── RefusedError       403, 410 or another status that refuses the request for ever
    ├── AmbiguousExecutionError    an execution may have been started, but which one cannot be determined
    ├── SharedExecutionError       TechFlow responded to a start with the execution of another task
    ├── AmbiguousWorkflowError     a workflow may have been created, but which one cannot be determined
    ├── StateUnavailableError      the record that a start needs could not be written; nothing was sent
    ├── SupersededError            another attempt of the same task has taken over the start
    ├── ExecutionNotFoundError     an execution did not appear in the history in time
    ├── ExecutionTimeoutError      an execution was still running when the timeout expired
    └── ExecutionFailedError       an execution reached `execution.failed`

Every error is built from positional values alone, so that it survives pickling. None of them ever holds the API key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar, dataclass_transform

from techflow_provider.client.parsing import in_seconds
from techflow_provider.client.text import printable

__all__ = ["AmbiguousExecutionError", "AmbiguousWorkflowError", "BadRequestError", "BudgetTimeoutError"]
__all__ += ["ExecutionFailedError", "ExecutionNotFoundError", "ExecutionTimeoutError", "InvalidParameterError"]
__all__ += ["NotFoundError", "RateLimitError", "RefusedError", "ResponseError", "ResponseSizeError", "ServerError"]
__all__ += ["SharedExecutionError", "StateUnavailableError", "SupersededError", "TechFlowError", "TransportError"]
__all__ += ["UnauthorizedError", "UnexpectedResponseError"]

P = ParamSpec("P")
T = TypeVar("T")

# Responses that refuse a request before acting on it. Any other may come from an intermediary.
REFUSALS = frozenset({*range(400, 408), *range(410, 418), *(421, 422, 423, 424, 426, 428, 429, 431, 451)})
# Of these, a later request may be accepted.
PASSING_REFUSALS = frozenset({423, 429})
SUCCESSES = range(200, 300)


@dataclass_transform(eq_default=False)
class TechFlowError(Exception):
    """Base of all errors that this package raises on purpose; each of them is a dataclass."""

    is_transient: ClassVar[bool] = False
    """Whether the next poll may succeed although this one failed."""
    message: ClassVar[str] = ""
    """What the error says; `{0}` is the error itself."""

    def __init_subclass__(cls) -> None:
        dataclass(eq=False)(cls)

    def __str__(self) -> str:
        return self.message.format(self) if self.message else super().__str__()

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # all subclasses are dataclasses
            if isinstance(value := getattr(self, each.name), str):
                # A server's text must not control a terminal or forge a line of a log.
                setattr(self, each.name, printable(value))
        # Pickles, copies and trigger events rebuild an error from its class and arguments.
        super().__init__(*(getattr(self, each.name) for each in fields(self)))  # type: ignore[arg-type]  # all subclasses are

    @property
    def had_no_effect(self) -> bool:
        """Whether a POST that failed certainly changed nothing: it was never sent, or was refused."""
        return False

    @property
    def was_accepted(self) -> bool:
        """Whether a POST certainly took effect although its response can't be read: it reported success."""
        return getattr(self, "status_code", None) in SUCCESSES


class InvalidParameterError(TechFlowError, ValueError):
    """A parameter has an invalid value; nothing was sent.

    :param parameter: the parameter's name as the caller knows it
    :param received: the value received, already safe to show
    :param expected: the value expected instead
    """

    had_no_effect = True
    message = "{0.parameter}: expected {0.expected}, got {0.received}"
    parameter: str
    received: str
    expected: str


class BudgetTimeoutError(TechFlowError):
    """The rate budget has no slot before the deadline; nothing was sent.

    :param call: the call as `METHOD path`
    :param next_slot_seconds: seconds until the next free slot
    :param deadline_seconds: seconds that were left to wait
    """

    is_transient = True
    had_no_effect = True
    message = (
        "{0.call} was not sent: the next slot in the rate budget is {0.next_slot_seconds:.1f} s away, "
        "and {0.deadline_seconds:.1f} s are left to wait; raise the timeout or spread the calls"
    )
    call: str
    next_slot_seconds: float
    deadline_seconds: float


class TransportError(TechFlowError):
    """No complete response: a failure of the connection or TLS, a timeout, or a response over the size limit.

    :param call: the call as `METHOD path`
    :param reason: what went wrong, human-readable
    :param maybe_sent: False when the request certainly never reached the server, so that a retry is safe
    :param status_code: the status code of a response whose body could not be read; None when there was none
    :param server: where the request was sent
    """

    is_transient = True
    call: str
    reason: str
    maybe_sent: bool
    status_code: int | None = None
    server: str = ""

    @property
    def had_no_effect(self) -> bool:
        """Whether the request certainly never reached the server."""
        return not self.maybe_sent

    def __str__(self) -> str:
        server = f"the server at {self.server}" if self.server else "the server"
        effect = f"the request {'may have' if self.maybe_sent else 'never'} reached {server}"
        if self.status_code is not None:
            effect = f"the request reached {server}, which responded with {self.status_code}"
        return f"{self.call}: {self.reason}; {effect}"


class ResponseSizeError(TransportError):
    """The response exceeds the size limit, so it was not read completely; another one would be as large."""


class ResponseError(TechFlowError):
    """The server sent a response other than the expected one.

    :param call: the call as `METHOD path`
    :param status_code: the HTTP status code of the response
    :param detail: the server's message or what is wrong with the response, shortened
    :param attempts: how many requests were sent for this call
    """

    advice: ClassVar[str] = ""
    call: str
    status_code: int
    detail: str
    attempts: int = 1

    @property
    def had_no_effect(self) -> bool:
        """Whether the server refused the request before acting on it."""
        return self.status_code in REFUSALS

    @property
    def summary(self) -> str:
        """What was requested and what was received, without the advice."""
        attempts = f" after {self.attempts} requests" if self.attempts > 1 else ""
        return f"{self.call} returned {self.status_code}{attempts}: {self.detail}"

    def __str__(self) -> str:
        return f"{self.summary}; {self.advice}" if self.advice else self.summary


class BadRequestError(ResponseError):
    """400: the server refused the request's content."""


class UnauthorizedError(ResponseError):
    """401: the API key is missing, wrong or revoked."""

    advice = "check the API key (the connection's password)"


class NotFoundError(ResponseError):
    """404: there is no such workflow, or the base URL is wrong."""

    @property
    def advice(self) -> str:  # type: ignore[override]  # a list has no id
        """What to check."""
        base_url = "the base URL (the connection's host) with its path"
        return f"check the id, and {base_url}" if self.call.count("/") > 1 else f"check {base_url}"


class RateLimitError(ResponseError):
    """429: over the limit of requests, and no time was left for a retry. The request was not executed."""

    is_transient = True
    advice = "something else may be using the same API key; lower requests_per_minute or spread the calls"


class ServerError(ResponseError):
    """500 or another 5xx: the server failed. After a POST it may have acted nevertheless."""

    is_transient = True


class UnexpectedResponseError(ResponseError):
    """The response is neither one that the reference describes nor one that is accepted in its place."""

    is_transient = True


class RefusedError(UnexpectedResponseError):
    """403, 405, 410 or another status with which the server refuses the request, and would again."""

    is_transient = False


ERRORS_BY_STATUS: dict[int, type[ResponseError]] = dict.fromkeys(range(500, 600), ServerError)
ERRORS_BY_STATUS |= dict.fromkeys(REFUSALS - PASSING_REFUSALS, RefusedError)
ERRORS_BY_STATUS |= {400: BadRequestError, 401: UnauthorizedError, 404: NotFoundError, 429: RateLimitError}


class AmbiguousExecutionError(TechFlowError):
    """An execution may have been started, but which one cannot be determined; starting another isn't safe.

    :param workflow_id: the workflow
    :param reason: what is known, human-readable
    """

    message = (
        "an execution of workflow {0.workflow_id} may have been started: {0.reason}; "
        "check the execution history in TechFlow before you start it again; a task that is cleared starts a new one"
    )
    workflow_id: str
    reason: str


class SharedExecutionError(TechFlowError):
    """TechFlow responded to a start with an execution that it had started for another request; it started none.

    :param workflow_id: the workflow
    :param execution_id: the execution
    :param holder: what has it
    """

    had_no_effect = True
    message = (
        "TechFlow responded to the start of workflow {0.workflow_id} with execution {0.execution_id}, which it had "
        "started for {0.holder}; retry when that is over, or set on_shared='join'"
    )
    workflow_id: str
    execution_id: str
    holder: str


class AmbiguousWorkflowError(TechFlowError):
    """A workflow may have been created, but which one cannot be determined; creating another isn't safe.

    :param name: the workflow's name
    :param reason: what is known, human-readable
    """

    message = (
        "a workflow named {0.name!r} may have been created: {0.reason}; "
        "check the list of workflows before you create it again"
    )
    name: str
    reason: str


class StateUnavailableError(TechFlowError):
    """The record that a start needs could not be written, so nothing was sent.

    :param workflow_id: the workflow
    :param reason: why, human-readable
    """

    message = (
        "no execution of workflow {0.workflow_id} was started: the shared state ([techflow] state_url), which a start "
        "needs in case its response is lost, can't be used: {0.reason}"
    )
    workflow_id: str
    reason: str


class SupersededError(TechFlowError):
    """Another attempt of the same task has taken over the start of its execution; this one has to stop.

    :param workflow_id: the workflow
    :param task: the task's identity
    """

    message = "another attempt of {0.task} has taken over the start of workflow {0.workflow_id}; this one stops"
    workflow_id: str
    task: str


class ExecutionNotFoundError(TechFlowError):
    """An execution did not appear in the execution history in time.

    :param execution: the execution, human-readable
    :param waited_seconds: how long the history was polled for it
    """

    execution: str
    waited_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.execution} did not appear in the execution history within {in_seconds(self.waited_seconds)}; "
            "check the id and that the connection's API key belongs to the same account"
        )


class ExecutionTimeoutError(TechFlowError):
    """An execution was still running when the timeout expired; it keeps running in TechFlow.

    :param execution: the execution, human-readable
    :param waited_seconds: how long it was waited for
    :param last_seen: what the last poll showed, human-readable
    """

    execution: str
    waited_seconds: float
    last_seen: str

    def __str__(self) -> str:
        return (
            f"{self.execution} did not end within {in_seconds(self.waited_seconds)} ({self.last_seen}); "
            "it keeps running in TechFlow, which has no call to cancel it"
        )


class ExecutionFailedError(TechFlowError):
    """An execution ended in `execution.failed`.

    :param execution_id: the execution
    :param workflow_id: its workflow, when the history names it
    :param status: the status as the server wrote it
    :param reason: the server's `error`, when there is one
    :param details: what else the server says about the execution, as JSON
    """

    execution_id: str
    workflow_id: str | None
    status: str
    reason: str | None
    details: str | None = None

    def __str__(self) -> str:
        workflow = f" of workflow {self.workflow_id}" if self.workflow_id else ""
        reason = f": {self.reason}" if self.reason else "" if self.details else "; TechFlow gives no reason"
        details = f"; TechFlow also sent {self.details}" if self.details else ""
        return f"execution {self.execution_id}{workflow} ended with status {self.status!r}{reason}{details}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def forget_frames(error: BaseException) -> None:
    """Drop the frames of an error and its causes: their variables, which crash reporters collect, hold secrets."""
    for each in chain(error):
        each.__traceback__ = None


def without_frames(function: Callable[P, T]) -> Callable[P, T]:
    """Let the errors of a function that gets secrets have none of the frames in which they were found."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except TechFlowError as error:
            forget_frames(error)
            found = error
        del args, kwargs
        raise found

    return call


def log_or_raise(error: TechFlowError, warn: Callable[..., None]) -> None:
    """Log that a poll failed and is retried.

    :param warn: a logger's `warning`
    :raises TechFlowError: the same error, when no later poll can succeed
    """
    if not error.is_transient:
        raise error
    warn("Polling the execution history failed and is retried: %s", error)


def rebuild_error(name: str, args: Iterable[Any]) -> TechFlowError:
    """Return an error from its class and arguments, which another version of this package may have written.

    :raises TypeError: the arguments don't fit
    """
    kind: Callable[..., TechFlowError] | None = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, TechFlowError)):
        return TechFlowError(name, *args)
    return kind(*args)
