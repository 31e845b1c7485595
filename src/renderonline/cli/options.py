"""Options and arguments that several commands share."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
Url = Annotated[
    str | None,
    typer.Option("--url", help="RenderAPI's address, when it is not the one of `renderonline login`.", metavar="URL"),
]
TaskId = Annotated[int, typer.Argument(metavar="TASK", min=1, help="The task's number.")]
TaskIds = Annotated[list[int], typer.Argument(metavar="TASK...", min=1, help="The tasks' numbers.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


def group(summary: str) -> typer.Typer:
    """A command with commands of its own."""
    return typer.Typer(
        help=summary,
        rich_markup_mode=None,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
