"""What the commands of `cli` do: each takes the parsed arguments and returns a `Report`; none of them prints."""
