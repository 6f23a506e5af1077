"""What a model says of all responses, once for every arm: losses, entropies, embeddings.

Each pass is an artefact of its own under what it was computed from, so that arms share it and
a killed run goes on after its last finished chunk.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, stored_batches
from selectit_dagster.artefacts.files import sha256_json, write_parquet
from selectit_dagster.artefacts.manifest import Content, make_or_current
from selectit_dagster.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.experiment import ModelReference
    from selectit_dagster.inference.response_pass import Forward, TokenStatistics

FILE = "pass.parquet"
CHUNK = 1024
TEXTS = ("record_id", "instruction", "input", "response")
Matrix = npt.NDArray[np.float32]
Texts = Sequence[tuple[str, str, str]]


@dataclass
class ResponsePasses:
    """The passes of one model over all curated records.

    Attributes
    ----------
    folder:
        Where the passes are kept.
    records:
        ``records.parquet``, with ``digest`` the digest of its artefact.
    """

    folder: Path
    records: Path
    digest: str
    model: ModelReference | None
    progress: Progress

    def losses(self) -> Path:
        """Return the losses and entropies of the responses given their instructions.

        Columns: ``record_id``, ``losses`` and ``entropies``: (T,) float32 in nats, null where
        the record does not fit into the model's context or has no response token.
        """

        def run(forward: Forward, texts: Texts, _: int) -> dict[str, pa.Array]:
            rows = [forward.conditioned(*record) for record in texts]
            return _token_columns(forward.token_statistics(rows, entropies=True), entropies=True)

        return self._made("losses", run)

    def losses_alone(self) -> Path:
        """Return the losses of the responses without their instructions; columns likewise."""

        def run(forward: Forward, texts: Texts, _: int) -> dict[str, pa.Array]:
            rows = [forward.direct(response) for *_, response in texts]
            return _token_columns(forward.token_statistics(rows))

        return self._made("losses alone", run)

    def losses_after(self, examples: npt.NDArray[np.int64], made_from: str) -> Path:
        """Return the losses given an instruction and one solved example before it.

        Parameters
        ----------
        examples:
            (N,) the place of each record's example among the records.
        made_from:
            How the examples were found.
        """
        solved = self._solved(examples)

        def run(forward: Forward, texts: Texts, start: int) -> dict[str, pa.Array]:
            rows = [
                forward.conditioned(*record, example=solved[start + number])
                for number, record in enumerate(texts)
            ]
            return _token_columns(forward.token_statistics(rows))

        return self._made("losses after an example", run, examples=made_from)

    def embeddings(self, *, weighted: bool = False) -> tuple[Path, Matrix]:
        """Return the pass's file and the (N, width) embeddings, in the order of the records.

        The means over the tokens of the last hidden states; ``weighted`` weighs the t-th of T
        tokens with t over the sum of 1 to T.
        """

        def run(forward: Forward, texts: Texts, _: int) -> dict[str, pa.Array]:
            rows = [forward.conditioned(*record) for record in texts]
            return {"embedding": _matrix_column(forward.embeddings(rows, weighted=weighted))}

        path = self._made("weighted embeddings" if weighted else "embeddings", run)
        return path, read_matrix(path)

    @cached_property
    def forward(self) -> Forward:
        """The loaded model."""
        from selectit_dagster.inference.model_loading import load_model
        from selectit_dagster.inference.response_pass import Forward

        if self.model is None:
            raise ValueError("this arm has no model")
        return Forward(load_model(self.model))

    def _solved(self, examples: npt.NDArray[np.int64]) -> list[tuple[str, str, str]]:
        texts = [row for _, rows in self._texts() for row in rows]
        return [texts[index] for index in examples]

    def _texts(self) -> Iterator[tuple[list[str], list[tuple[str, str, str]]]]:
        """Yield ids and (instruction, input, response) of the records, chunk by chunk."""
        for batch in stored_batches(self.records, list(TEXTS), CHUNK):
            columns = [batch.column(name).to_pylist() for name in TEXTS]
            yield columns[0], list(zip(*columns[1:], strict=True))

    def _made(
        self, name: str, run: Callable[[Forward, Texts, int], dict[str, pa.Array]], **more: str
    ) -> Path:
        """Return the file of a pass, made chunk by chunk unless it is there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from selectit_dagster.inference.model_identity import inference_identity

        if self.model is None:
            raise ValueError("this arm has no model")
        fingerprint: dict[str, Any] = {
            "pass": name,
            "records": self.digest,
            "model": inference_identity(self.model),
            "dtype": self.model.dtype,
            **more,
        }
        out = self.folder / f"{name.replace(' ', '-')}-{sha256_json(fingerprint)[:16]}"
        total = pq.read_metadata(self.records).num_rows

        def make() -> Content:
            done, chunks = 0, out / ".chunks"
            with ParquetStream(out / FILE, compression="lz4") as stream:
                for number, (ids, texts) in enumerate(self._texts()):
                    path = chunks / f"{number:06d}.parquet"
                    if not path.exists():
                        columns = {"record_id": pa.array(ids), **run(self.forward, texts, done)}
                        chunks.mkdir(exist_ok=True)
                        write_parquet(path, pa.table(columns))
                    for batch in pq.read_table(path).to_batches():
                        stream.write(batch)
                    done += len(ids)
                    self.progress.update(done, total)
            return Content([FILE], {"records": done})

        make_or_current(out, kind="response_pass", fingerprint=fingerprint, make=make)
        shutil.rmtree(out / ".chunks", ignore_errors=True)
        return out / FILE


def _token_columns(
    found: Sequence[TokenStatistics | None], *, entropies: bool = False
) -> dict[str, pa.Array]:
    import pyarrow as pa

    names = ("losses", "entropies") if entropies else ("losses",)
    return {
        name: pa.array(
            [None if s is None else getattr(s, name) for s in found], pa.list_(pa.float32())
        )
        for name in names
    }


def _matrix_column(values: Matrix) -> pa.Array:
    import pyarrow as pa

    flat = pa.array(values.reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def read_matrix(path: Path) -> Matrix:
    """Return the (N, width) embeddings of a pass."""
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=["embedding"]).column("embedding").combine_chunks()
    return np.asarray(column.flatten().to_numpy()).reshape(len(column), -1)
