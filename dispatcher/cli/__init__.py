"""The command `taskyard`: one file per subcommand, loaded when it runs."""

from taskyard.dispatcher.cli.app import main as main
