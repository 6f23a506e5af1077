"""Old runs and their event logs: a weekly job that deletes them, where it is told how old."""

import datetime as dt
import os

import dagster as dg


def forget_runs(instance: dg.DagsterInstance, before: dt.datetime) -> int:
    """Delete runs that ended before a time, and return how many.

    A run stays that was the last to make an asset or partition: with its events Dagster would
    forget that the artefact is there.
    """
    filters = dg.RunsFilter(
        statuses=[
            dg.DagsterRunStatus.SUCCESS,
            dg.DagsterRunStatus.FAILURE,
            dg.DagsterRunStatus.CANCELED,
        ],
        updated_before=before,
    )
    old = [run.run_id for run in instance.get_runs(filters)]
    gone = [run_id for run_id in old if not _made_what_is_newest(instance, run_id)]
    for run_id in gone:
        instance.delete_run(run_id)
    return len(gone)


def _made_what_is_newest(instance: dg.DagsterInstance, run_id: str) -> bool:
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        made = entry.asset_materialization
        if made is None:
            continue
        places = [made.partition] if made.partition else None
        newest = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=made.asset_key, asset_partitions=places), limit=1
        ).records
        if newest and newest[0].run_id == run_id:
            return True
    return False


def retention() -> dg.Definitions:
    """Return the weekly job, or nothing where runs are kept for good."""
    if not (days := os.environ.get("SELECTIT_KEEP_RUNS_DAYS")):
        return dg.Definitions()

    @dg.op
    def forget_runs_of_before(context: dg.OpExecutionContext) -> None:
        before = dt.datetime.now(dt.UTC) - dt.timedelta(days=float(days))
        context.log.info("%d runs deleted", forget_runs(context.instance, before))

    @dg.job(description=f"Delete runs that ended more than {days} days ago.")
    def forget_old_runs() -> None:
        forget_runs_of_before()

    weekly = dg.ScheduleDefinition(
        job=forget_old_runs,
        cron_schedule="30 3 * * 0",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return dg.Definitions(jobs=[forget_old_runs], schedules=[weekly])
