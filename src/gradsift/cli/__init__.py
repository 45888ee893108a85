"""The command line: a file per verb. Nothing else imports this room."""
