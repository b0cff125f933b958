"""`eventq`, the command: one file per group of commands, put together here.

Every command answers on stdout, says everything else on stderr, and ends with a documented exit code. Nothing heavy is
imported before a command needs it, so ``--help`` stays immediate.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from eventq.events.errors import EventqError
from eventq.services import (
    cli_control,
    cli_events,
    cli_processes,
    cli_projection,
    cli_queues,
    cli_schedules,
    cli_submit,
    cli_system,
    cli_tasks,
    cli_workers,
    cli_workflows,
)
from eventq.services.cli_exit import MEANINGS, ExitCode, exit_code_of

RUN, USE, OPERATE = "Run it", "Use it", "Operate it"

EXIT_CODES = "Exit codes: " + "; ".join(f"{int(code)} {meaning}" for code, meaning in MEANINGS.items()) + "."

app = typer.Typer(
    name="eventq",
    help="An event-sourced task queue: nothing is lost, everything can be explained, replayed and queried.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=cli_system.print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An event-sourced task queue: nothing is lost, everything can be explained, replayed and queried."""


app.command("demo", rich_help_panel=RUN)(cli_processes.run_demo)
app.command("up", rich_help_panel=RUN)(cli_processes.start_up)
app.command("api", rich_help_panel=RUN)(cli_processes.serve_api)
app.command("worker", rich_help_panel=RUN)(cli_processes.run_worker)
app.command("scheduler", rich_help_panel=RUN)(cli_processes.run_scheduler)
app.command("submit", rich_help_panel=USE, context_settings=cli_submit.TELL_EXTRA)(cli_submit.submit)
app.command("submit-batch", rich_help_panel=USE)(cli_control.submit_batch)
cli_tasks.app.command("pause")(cli_control.pause_task)
cli_tasks.app.command("resume")(cli_control.resume_task)
cli_tasks.app.command("update")(cli_control.update_task)
cli_tasks.app.command("delete")(cli_control.delete_task)
cli_tasks.app.command("erase")(cli_control.erase_task)
cli_tasks.app.command("bulk")(cli_control.bulk)
app.add_typer(cli_tasks.app, rich_help_panel=USE)
app.add_typer(cli_control.dead_letters, rich_help_panel=USE)
app.add_typer(cli_schedules.app, rich_help_panel=USE)
app.add_typer(cli_workflows.app, rich_help_panel=USE)
app.add_typer(cli_queues.app, rich_help_panel=OPERATE)
app.add_typer(cli_workers.app, rich_help_panel=OPERATE)
app.add_typer(cli_events.app, rich_help_panel=USE)
app.add_typer(cli_projection.app, rich_help_panel=OPERATE)
app.command("settings", rich_help_panel=OPERATE)(cli_system.list_settings)
app.command("doctor", rich_help_panel=OPERATE)(cli_system.run_doctor)
app.command("bench", rich_help_panel=OPERATE, context_settings=cli_system.PASS_ON)(cli_system.run_bench)
app.command("version", rich_help_panel=OPERATE)(cli_system.show_version)


# Click's base of all that is wrong on a command line; typer brings a copy of click under a name of its own.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class WrongUsage(EventqError):
    """The command line itself is wrong, told as every other error is."""

    code = "USAGE"


def main() -> None:
    """The console script."""
    as_json = "--json" in sys.argv
    try:
        # Typer's own way to tell of wrong usage is a box for people.
        sys.exit(app(standalone_mode=not as_json))
    except _UsageError as error:
        sys.exit(tell(WrongUsage(_sentence(error), hint=_help_hint(error)), as_json=as_json))
    except EventqError as error:
        sys.exit(tell(error, as_json=as_json))


def _sentence(error: Exception) -> str:
    return " ".join(str(getattr(error, "format_message", error.__str__)()).split())


def _help_hint(error: Exception) -> str | None:
    context: Any = getattr(error, "ctx", None)
    return None if context is None else f"see `{context.command_path} --help`"


def tell(error: EventqError, *, as_json: bool) -> ExitCode:
    """Say what went wrong on stderr; with ``as_json`` as one object with code, sentence and fields."""
    from eventq.services.output import clean, one_line

    code = exit_code_of(error)
    hint = error.fields.get("hint")
    if as_json:
        import orjson

        body = {"code": error.code, "detail": error.detail, **error.fields, "exit_code": int(code)}
        print(orjson.dumps(body, default=str).decode(), file=sys.stderr)
    else:
        print(clean(f"error {error.fields.get('code') or error.code}: {error.detail}"), file=sys.stderr)
        for name in ("found", "limit"):
            if (value := error.fields.get(name)) is not None and str(value) not in error.detail:
                print(f"{name}: {one_line(str(value))}", file=sys.stderr)
        others: Any = error.fields.get("errors") or ()
        for other in others[1:]:
            print(clean(f"also {other['field']}: {other['problem']}"), file=sys.stderr)
        if hint:
            print(clean(f"hint: {hint}"), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
