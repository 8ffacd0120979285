"""Start exactly one execution for a task, whatever is lost on the way."""
