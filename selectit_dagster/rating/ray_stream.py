"""The way through the cluster: descriptors of chunks in, rated groups out.

Ray Data gets one descriptor per chunk and streams it through two pools of actors: planners on
this node, which read and tokenise, and raters anywhere, of which each holds one model. Ray
decides where and when, holds back the planners while the raters are busy, and runs again what
was lost with a process or a node.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import TransientError, first_line
from selectit_dagster.inference.ray_cluster import Cluster, Pool, pool_for
from selectit_dagster.rating.ray_workers import Planner, Rater, RaterSpec

if TYPE_CHECKING:
    from selectit_dagster.rating.scoring import ScoringRequest

LOGGER = logging.getLogger("selectit_dagster")
# groups that an actor rates at once, and has by it: the batches of one fill the gap that the
# last batches of the other leave. With less than twice as many by it Ray Data takes no actor
# for busy: its pool does not grow, and a node of three stays idle
_AT_ONCE = 2
_IN_FLIGHT = 2 * _AT_ONCE


def rated_groups(
    todo: list[dict[str, Any]],
    request: ScoringRequest,
    plan: dict[str, Any],
    spec: RaterSpec,
    cluster: Cluster,
) -> Generator[dict[str, Any], None, None]:
    """Yield the rated groups in the order in which they come.

    Parameters
    ----------
    todo:
        Descriptors of chunks: ``chunk``, and the rows that are there (``reused``, ``resumed``).
    request:
        What is rated.
    plan:
        The folder's plan: ``batch_tokens`` and ``chunk_records``.
    spec:
        The model of each rater.
    cluster:
        Where it runs.

    Raises
    ------
    TransientError
        When Ray gave up on a piece of work.
    """
    import ray

    dataset = _dataset(todo, request, plan, spec, cluster)
    try:
        for table in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            yield from table.to_pylist()
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise TransientError(
            f"Ray gave up on a piece of work: {first_line(error)}; what was "
            "rated is kept, run again to go on"
        ) from error


def _dataset(
    todo: list[dict[str, Any]],
    request: ScoringRequest,
    plan: dict[str, Any],
    spec: RaterSpec,
    cluster: Cluster,
) -> Any:  # noqa: ANN401 - a ray.data.Dataset
    from ray.data import ActorPoolStrategy, from_items

    section = request.ray
    pool = _pool(len(todo), request, cluster)
    _settle_context(section.ahead_mb)

    def bounded() -> dict[str, Any]:
        # an actor is restarted as often as it must, a piece of work is not: one that kills
        # its process each time would go round for ever
        return {"max_restarts": -1, "max_task_retries": section.retries}

    return (
        from_items(todo, override_num_blocks=len(todo))
        .map_batches(
            Planner,
            fn_constructor_args=(request, plan),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(section.planners, len(todo))),
            num_cpus=0,
            # the records lie on this node's disk
            label_selector={"ray.io/node-id": cluster.here},
            ray_remote_args_fn=bounded,
        )
        .map_batches(
            Rater,
            fn_constructor_args=(spec,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=1,
                max_size=pool.most,
                initial_size=pool.size,
                max_tasks_in_flight_per_actor=_IN_FLIGHT,
                max_concurrent_calls_per_actor=_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            ray_remote_args_fn=bounded,
        )
    )


def _pool(shards: int, request: ScoringRequest, cluster: Cluster) -> Pool:
    """Return the raters that the cluster has room for, and log what will run."""
    nodes = cluster.nodes()
    pool = pool_for(request.ray.shape(request.model.name), nodes)
    LOGGER.info(
        "scoring on Ray: %d nodes, %d actors of %d CPUs and %g GPUs, %d shards, dashboard %s",
        len(nodes),
        pool.size,
        pool.cpus,
        pool.gpus,
        shards,
        cluster.dashboard or "off",
    )
    return pool


def _settle_context(ahead_mb: int) -> None:
    """Set what Ray Data shows (nothing) and how much of the object store it may fill."""
    from ray.data import DataContext, ExecutionOptions, ExecutionResources

    context = DataContext.get_current()
    context.enable_progress_bars = False
    # a block is what an actor gets at a time: each row, one group, is to be one
    context.target_max_block_size = 1
    options = ExecutionOptions()
    options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead_mb << 20)
    context.execution_options = options
    logging.getLogger("ray.data").setLevel(logging.WARNING)
