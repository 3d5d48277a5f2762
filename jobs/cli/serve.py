"""`detr-batch serve`: a detector behind HTTP, which clients of OpenAI speak."""

from typing import Any

from jobs.cli.options import add_command
from jobs.label.log.lines import as_line
from jobs.serve.settings.options import ServeOptions


def add(commands: Any) -> None:
    add_command(
        commands,
        "serve",
        ServeOptions,
        _serve,
        help="answer requests over HTTP, in the form of OpenAI's clients",
        description="Serve a detector over HTTP until Ctrl-C: /v1/detections, "
        "/v1/chat/completions, files and batches, for the `openai` package and for curl. The page "
        "at / tries it. On one machine by default; with --address on a Ray cluster.",
        as_line=as_line,
    )


def _serve(options: ServeOptions) -> int:
    from jobs.serve.settings.packages import refuse_missing_packages

    refuse_missing_packages()
    options.check()
    from jobs.serve.serve import serve  # slow to import: wrong values are refused before

    return serve(options)
