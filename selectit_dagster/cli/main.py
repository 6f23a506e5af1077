"""The ``selectit`` command: its commands, and every outcome as an exit code and one message.

Exit codes: 0 success, 2 the user's input is wrong (one message, no traceback), 1 our own
failure, 130 interrupted. Results go to stdout, progress and messages to stderr. A module
holds a group of commands; each reads options, calls one function and prints results.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import threading
import traceback
from typing import Any

import click

from selectit_dagster import __version__
from selectit_dagster.cli import (
    doctor_command,
    export_commands,
    history_commands,
    record_commands,
    run_commands,
    select_command,
)
from selectit_dagster.display import visible
from selectit_dagster.errors import TransientError, UserError, of_the_machine, redacted

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="selectit")
def cli() -> None:
    """Select instruction data with SelectIT, tune on it, and see whether it helped."""


for _command in (
    run_commands.run_command,
    select_command.select_command,
    run_commands.plan_command,
    run_commands.ui_command,
    run_commands.report_command,
    run_commands.storage_group,
    history_commands.rank_command,
    history_commands.history_command,
    history_commands.diff_command,
    history_commands.rollback_command,
    history_commands.promote_command,
    history_commands.prune_command,
    record_commands.explore_command,
    record_commands.review_group,
    record_commands.explain_command,
    record_commands.sensitivity_command,
    doctor_command.doctor_command,
    export_commands.chat_command,
    export_commands.merge_command,
    export_commands.export_command,
    export_commands.scores_command,
    export_commands.publish_command,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command and turn every outcome into an exit code and one message."""
    # the libraries' imports make a million objects that stay: collecting among them costs more
    # than a short command itself
    gc.set_threshold(100_000, 20, 50)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        _message("interrupted; start the same command again to go on where it stopped")
        sys.exit(130)
    except UserError as error:
        _message(f"error: {error}")
        sys.exit(1 if getattr(error, "permanent", True) is False else 2)
    except TransientError as error:
        _message(f"error: {error}\n  hint: it may work later; the same command goes on from here")
        sys.exit(1)
    except Exception as error:
        if type(error).__name__ == "DagsterExecutionInterruptedError":
            _message("interrupted; start the same command again to go on where it stopped")
            sys.exit(130)
        if (lacking := of_the_machine(error)) is not None:
            _message(f"error: {lacking}")
            sys.exit(2)
        _message(f"selectit failed: {type(error).__name__}: {error}")
        if os.environ.get("SELECTIT_DEBUG"):
            traceback.print_exc()
        else:
            _message("  this is a fault of selectit; SELECTIT_DEBUG=1 shows where")
        sys.exit(1)


def console() -> None:
    """Run the command as a process of its own, and end it at once.

    Taking a million objects of the libraries apart one by one takes a second. What is to be
    done at the end is done; where a thread still works, the process ends as usual.
    """
    code: str | int | None = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    if threading.active_count() > 1 or isinstance(code, str):
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _message(text: str) -> None:
    sys.stderr.write(visible(redacted(text)) + "\n")
