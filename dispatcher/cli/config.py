"""`taskyard config`: the settings in force."""

from rich.markup import escape

from taskyard.dispatcher.cli.configure import LEAVES, Configured, shown
from taskyard.dispatcher.cli.flags import NONE, Common, configured
from taskyard.dispatcher.cli.terminal import out, warn


def config(*, common: Common = NONE) -> None:
    """Show the settings in force as TOML, each with what it means and where its value comes from.

    Passwords are hidden. What it prints can be used as taskyard.toml.
    """
    found = configured(common)
    for warning in found.warnings:
        warn(warning)
    console = out()
    for line in toml(found):
        style = "dim" if line.startswith("#") else "bold" if line.startswith("[") else ""
        console.print(escape(line), style=style, soft_wrap=True)


def toml(found: Configured) -> list[str]:
    """Write the settings as lines of TOML."""
    lines: list[str] = []
    section = ""
    for path, leaf in LEAVES.items():
        above, _, name = path.rpartition(".")
        if above != section:
            section = above
            lines += ["", f"[{section}]"]
        value: object = found.settings
        for step in path.split("."):
            value = getattr(value, step)
        text = shown(path, value)
        hidden = ", password hidden" if "***" in text else ""
        lines += [f"# {leaf.description} [{found.origins[path]}{hidden}]", f"{name} = {text}"]
    return lines
