"""The command line; `hiermem.cli.main` is where it starts."""
