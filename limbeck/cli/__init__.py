"""The command line: one file per group of commands, one file that prints."""

from limbeck.cli.app import main

__all__ = ["main"]
