"""The commands of `cli`: each takes the parsed arguments and returns a `Report`; only `definitions` prints."""
