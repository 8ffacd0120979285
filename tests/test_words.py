"""The package's vocabulary: words with a private meaning are rejected, and the usual ones are named instead."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("techflow_provider", "tests", "dags_examples", "docs", ".ci")
TEXTS = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("Makefile", "pyproject.toml", ".ci/run", ".ci/matrix.sh", ".ci/environment.sh"),
)

# Whole names that a definition must not have: classes, functions, parameters, variables and attributes.
NAMES = {
    "Conversation converse": "Flow, run",
    "Terms": "FlowContext",
    "bear passes": "is_transient, log_or_raise",
    "PageMemory": "ConditionalCache",
    "shapes ShapeError": "parsing, DecodeError",
    "News Subject Interest Target": "Event, EventFilter, HistoryFilter, ExecutionSelector",
    "judge Verdict Later Unclear": "match, Match, NoMatch, Undecided, Ambiguous",
    "Rival strangers Reading Loss": "CompetingIntent, foreign, HistorySnapshot, MatchInput, LostResponse",
    "Task author ticket": "Submitter, attempt_id, submission_id",
    "Rules Started Decision facts": "SubmissionPolicy, Submission, Origin, reason",
    "Note Notebook conclude give_up serves": "AttemptRecord, AttemptStore, mark_done, discard, is_reusable",
    "look looks looked looking": "poll; get, read for the rest",
    "Crowd crowd": "ObserverSet",
    "Wait Watch watch": "ExecutionWaiter, ExecutionTracker",
    "Pace pace announced": "PollSchedule, webhook_streak",
    "attend": "heartbeat",
    "Account take cool strikes": "state, GcraState, reserve, cool_down, consecutive_429",
    "Wish wish wishes drain arrival": "ReservationRequest, assumed_share, tat",
    "Ledger ledger": "BudgetState",
    "door": "file lock",
    "Lookout Journal Mailbox Telling": "EventCursor, CursorStore, EventBuffer, EventEmitter",
    "said lesson": "message, inference",
    "WaitOver": "WaitOutcome",
}
# Parts of a name that no definition has, nor a test's sentence.
PARTS = {
    "tell tells told telling": "log, report, say",
    "ring rings rang rung bell bells": "wake, wake-up counter",
    "lookout lookouts mailbox notebook crowd": "EventCursor, EventBuffer, AttemptStore, ObserverSet",
    "patience": "timeout, is_transient",
    "answer answers answered": "response",
    "stranger strangers": "foreign",
    "verdict rival rivals": "MatchResult, CompetingIntent",
    "pause pauses paused": "cool-down",
    "wish wishes": "request",
    "news": "events",
}
# Phrases that neither prose nor a test's sentence has.
PHRASES = {
    r"\b(told|tells?|telling)\b": "log, report, say",
    r"\b(go|goes|going|went|gone) on\b": "keep running, continue",
    r"\b(im)?patience\b": "timeout, is_transient",
    r"\bin words\b": "human-readable",
    r"(?<![Tt]here )\b(is|are|was|were) no\b(?! (longer|later|sooner|further|more|fewer|less|one)\b)": "isn't a",
    r"\b(rings?|ringing|rang|rung|bells?)\b": "wake, wake-up counter",
    r"\b(lookouts?|mailbox(es)?|notebooks?|crowds?)\b": "EventCursor, EventBuffer, AttemptStore, ObserverSet",
    r"\b(an?|the|each|every|one|no|its|first|next|last|this|two|more) looks?\b(?! (like|up)\b)": "poll",
    r"\blook(s|ed|ing)? (at|into) (the |its |an? )?(execution )?history\b": "poll, read the history",
    r"\blooks\b(?! (like|up|for|alike|right|wrong)\b)": "poll; get, read for the rest",
    r"\banother try\b": "retry, attempt",
    r"(?<![?] )\bWho(ever)? [a-z']+\b(?![^.]*[?])": "a noun as the subject",
    r"(?<=[;,:] )whoever\b": "a noun as the subject",
    r"\bends? of (an?|the|its|each|every|such|this) (executions?|waits?)\b": "completion, final status",
    r"\banswer(s|ed|ing)?\b": "response",
    r"\bpaus(e|es|ed|ing)\b": "cool-down",
    r"\b(may|can|must|could) leave (now|at once)\b": "be sent",
    r"\b(strangers?|verdicts?|rivals?)\b": "foreign, MatchResult, CompetingIntent",
    r"\bset aside\b": "quarantine",
    r"\bnews\b": "events",
}


@dataclass(frozen=True)
class Allowed:
    """Where a rejected word is right.

    :param files: a glob of paths
    :param text: a regular expression that the line matches
    :param reason: why
    """

    files: str
    text: str
    reason: str


ALLOWED = (
    Allowed("tests/test_words.py", "", "this list"),
    Allowed("*", "lost_answer|execute-answer", "former names of public options, which are still accepted"),
    Allowed("*", "adopted after a lost answer", "a documented value in XComs"),
    Allowed("*", r"(?i)paused?[ _](dag|upon|at)|dags?\W.*paus", "Airflow's word for a DAG"),
    Allowed("tests/benchmarks/exactly_once.py", '"paused": False', "a field of another service"),
    Allowed("CHANGELOG.md", "`verdict`", "a former name"),
    Allowed(
        "techflow_provider/state/*.py", "lookouts|bells", "names in state files, those of version 0.1.0 among them"
    ),
    Allowed("tests/state/*.py", "bells", "a table in state files of version 0.1.0"),
    Allowed("techflow_provider/submission/legacy.py", '"told"', "a name in records of version 0.1.0"),
    Allowed("tests/submission/test_attempts.py", '"told"', "a name in records of version 0.1.0"),
)


@dataclass(frozen=True, order=True)
class Offence:
    """A rejected word, and the one to use."""

    path: str
    line: int
    word: str
    preferred: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word!r}: write {self.preferred}"


def by_word(table: dict[str, str]) -> dict[str, str]:
    """Return a table of single words."""
    return {word: preferred for words, preferred in table.items() for word in words.split()}


NAME_WORDS, PART_WORDS = by_word(NAMES), by_word(PARTS)
PHRASE_PATTERNS = {re.compile(phrase): preferred for phrase, preferred in PHRASES.items()}


def sources() -> list[Path]:
    return sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))


def texts() -> list[Path]:
    return [path for path in [ROOT / name for name in TEXTS] + sorted((ROOT / "docs").rglob("*.md")) if path.exists()]


def defined(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that code defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.alias(asname=str()):
                yield node.lineno, node.asname or ""
            case ast.ExceptHandler(name=str()):
                yield node.lineno, node.name or ""


def in_name(line: int, name: str, path: str) -> Iterator[Offence]:
    """Yield what is wrong with a name."""
    bare = name.strip("_")
    if bare in NAME_WORDS:
        yield Offence(path, line, name, NAME_WORDS[bare])
    for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name):
        if part.lower() in PART_WORDS:
            yield Offence(path, line, name, PART_WORDS[part.lower()])
    if name.startswith("test_"):
        yield from in_prose(line, name.replace("_", " "), path, name)


def in_prose(first_line: int, text: str, path: str, shown: str = "") -> Iterator[Offence]:
    """Yield what is wrong with prose; a phrase may go over the end of a line."""
    flat = re.sub(r"\n[ \t]+", "\n", text)
    joined = flat.replace("\n", " ")
    for pattern, preferred in PHRASE_PATTERNS.items():
        for found in pattern.finditer(joined):
            line = first_line + flat.count("\n", 0, found.start())
            yield Offence(path, line, shown or found[0], preferred)


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the comments and strings; comments on consecutive lines are one text."""
    comment: list[str] = []
    began = ended = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name == "COMMENT":
            if comment and token.start[0] == ended + 1:
                comment.append(token.string.lstrip("# "))
            else:
                if comment:
                    yield began, "\n".join(comment)
                began, comment = token.start[0], [token.string.lstrip("# ")]
            ended = token.start[0]
        elif name in {"STRING", "FSTRING_MIDDLE"}:
            yield token.start[0], token.string
    if comment:
        yield began, "\n".join(comment)


def offences(path: Path) -> list[Offence]:
    """Return all that is wrong with a file."""
    name, source = str(path.relative_to(ROOT)), path.read_text()
    found: list[Offence] = []
    if path.suffix == ".py":
        for line, identifier in defined(ast.parse(source)):
            found += in_name(line, identifier, name)
        for line, text in prose_of(source):
            found += in_prose(line, text, name)
    else:
        found += in_prose(1, source, name)
    lines = source.splitlines()
    return sorted({each for each in found if not is_allowed(each, lines[each.line - 1])})


def is_allowed(offence: Offence, line: str) -> bool:
    """Whether a word is right where it stands."""
    return any(Path(offence.path).match(each.files) and re.search(each.text, line) for each in ALLOWED)


@pytest.mark.parametrize("path", sources() + texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_uses_the_usual_words(path: Path) -> None:
    found = offences(path)
    assert not found, "\n" + "\n".join(map(str, found))


if __name__ == "__main__":
    for each in sources() + texts():
        sys.stdout.writelines(f"{offence}\n" for offence in offences(each))
