"""What the users of one API key share: its rate budget."""
